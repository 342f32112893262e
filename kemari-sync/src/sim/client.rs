//! The observers: clients with one request outstanding each, who write down every reply.

/// How many there are.
pub(super) const CLIENTS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) client: usize,
    pub(super) id: u64,
    pub(super) page: usize,
    /// What to write; none: read.
    pub(super) put: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) client: usize,
    pub(super) id: u64,
    pub(super) page: usize,
    pub(super) is_put: bool,
    /// The disk could not do it: the client does not count it as done.
    pub(super) failed: bool,
    pub(super) value: u64,
    /// Number of the request in the machine's own order.
    pub(super) seq: u64,
    /// Digest of the whole execution up to here.
    pub(super) hash: u64,
    pub(super) life: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    pub(super) last_id: u64,
    pub(super) outstanding: Option<Request>,
    /// The highest number that anybody had seen when the outstanding request was first sent.
    pub(super) seen_at_send: u64,
    pub(super) last_reply_us: u64,
    /// Counts alarms: only the last one set wakes it.
    pub(super) alarms: u64,
}
