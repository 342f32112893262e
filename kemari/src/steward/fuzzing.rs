//! The doors to what a steward reads: see `crate::fuzzing`.

use kemari_vmm::disk::OpenImage;

use super::hooks::{Alarm, Runner};
use super::protocol::{Opening, Orders, Refusal, Request, receive, send};
use super::serve;
use crate::config::Occasion;

/// Takes this as what comes on either socket, with orders that name nothing: so nothing is run or opened.
pub fn take_requests(bytes: &[u8]) {
    let orders = Orders::default();
    let mut rest = bytes;
    while let Ok((_, request)) = receive::<(u64, Request)>(&mut rest) {
        let _ = serve::answer(&orders, &mut Runner::default(), request);
    }
    if let Ok((_, opening)) = postcard::from_bytes::<(u64, Opening)>(bytes) {
        let refusal = serve::open(&orders, &opening).expect_err("there is nothing to open");
        assert_eq!(refusal, Refusal::Unknown);
    }
}

/// Requests as a side makes them.
pub fn requests() -> Vec<Vec<u8>> {
    let fence = Request::Fence {
        peer: "b".into(),
        until_ns: 7_000_000_000,
    };
    let mut stream = Vec::new();
    send(&mut stream, &(1_u64, fence)).expect("memory");
    send(&mut stream, &(2_u64, Request::Look)).expect("memory");
    let alarm = Alarm {
        on: Occasion::NotReady,
        vm: "db".into(),
        host: "a".into(),
        role: "primary".into(),
        term: 7,
        state: "not ready".into(),
        why: vec!["there is no TAP".into()],
        time_ms: 1_790_000_000_000,
        missed: 3,
    };
    send(&mut stream, &(4_u64, Request::Alarm(alarm))).expect("memory");
    send(&mut stream, &(5_u64, Request::Hooks)).expect("memory");
    let how = OpenImage {
        write: true,
        direct: true,
        exclusive: true,
    };
    let openings = [Opening::Tap("net0".into()), Opening::disk("blk0".into(), how)];
    let packets = openings.map(|opening| postcard::to_stdvec(&(3_u64, opening)).expect("memory"));
    [vec![stream], packets.to_vec()].concat()
}
