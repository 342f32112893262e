//! What moves: frames between hosts, requests and replies of clients, writes to the disk.

use rand::Rng;

use crate::primary::PrimaryEvent;
use crate::secondary::SecondaryEvent;
use crate::wire::{Channel, Message};

use super::client::{Reply, Request};
use super::events::{Event, ToProcess};
use super::host::Process;
use super::invariants::{Invariant, disk, stop};
use super::net::{Connection, End, Frame, PRIMARY, SECONDARY};
use super::world::World;

/// How long a stalled frame waits before it is tried again, in microseconds.
const STALL_US: u64 = 3_000;
/// Pages that clients use; the others get dirty in the background.
const CLIENT_PAGES: usize = 12;
const CLIENT_RETRY_US: u64 = 40_000;

impl World {
    /// A primary looks whether it wants a connection, and to whom.
    pub(super) fn dial(&mut self, host: usize) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let wanted = side.machine.wants_peer() && !side.dialing;
        self.tell_after(8_000, host, ToProcess::Dial);
        let to = (host + self.rng.random_range(1..super::HOSTS)) % super::HOSTS;
        if wanted && matches!(self.hosts[to].process, Process::Secondary(_)) {
            if let Some(side) = self.hosts[host].primary() {
                side.dialing = true;
            }
            let (delay_us, life) = (self.some_us(3_000), self.hosts[host].life);
            self.after(delay_us, Event::Connect { from: host, life, to });
        }
    }

    pub(super) fn connect(&mut self, from: usize, life: u64, to: usize) {
        if self.hosts[from].life != life {
            return;
        }
        let Some(side) = self.hosts[from].primary() else {
            return;
        };
        side.dialing = false;
        let is_reachable = !self.cuts[from][to] && !self.cuts[to][from] && self.hosts[to].powered;
        if !is_reachable || !matches!(self.hosts[to].process, Process::Secondary(_)) {
            return;
        }
        let session = self.connections.len() as u64;
        let ends = [
            End { host: from, life },
            End {
                host: to,
                life: self.hosts[to].life,
            },
        ];
        self.connections.push(Connection {
            id: session,
            ends,
            open: [true; 2],
            is_proved: false,
            queues: Default::default(),
        });
        self.note(|| format!("session {session}: host {from} to host {to}"));
        self.tell_after(
            0,
            from,
            ToProcess::Primary(PrimaryEvent::PeerConnected { session }),
        );
    }

    pub(super) fn transmit(&mut self, session: u64, sender: usize, frame: Frame) {
        let channel = match &frame {
            Frame::Message(message) if message.channel() == Channel::Heartbeat => 1,
            _ => 0,
        };
        let delay_us = self.some_us(self.setup.delay_us);
        let arrives_us = self.now_us + delay_us;
        let connection = &mut self.connections[session as usize];
        if !connection.open[sender] {
            return;
        }
        let queue = &mut connection.queues[sender][channel];
        let arrives_us = queue
            .back()
            .map_or(arrives_us, |(last_us, _)| arrives_us.max(*last_us));
        queue.push_back((arrives_us, frame));
        self.at(
            arrives_us,
            Event::Pump {
                connection: session as usize,
                sender,
                channel,
            },
        );
    }

    /// Delivers what has arrived; while the way is cut it waits, as TCP does.
    pub(super) fn pump(&mut self, index: usize, sender: usize, channel: usize) {
        let connection = &mut self.connections[index];
        let (from, to) = (connection.ends[sender], connection.ends[1 - sender]);
        let queue = &mut connection.queues[sender][channel];
        if queue
            .front()
            .is_none_or(|(arrives_us, _)| *arrives_us > self.now_us)
        {
            return;
        }
        let is_cut = self.cuts[from.host][to.host];
        let receiver = &self.hosts[to.host];
        if is_cut || receiver.stopped_until_us > self.now_us {
            return self.after(
                STALL_US,
                Event::Pump {
                    connection: index,
                    sender,
                    channel,
                },
            );
        }
        let Some((_, frame)) = queue.pop_front() else {
            return;
        };
        if receiver.life != to.life || !connection.open[1 - sender] {
            return;
        }
        let session = connection.id;
        match (frame, 1 - sender) {
            (Frame::Closed, end) => {
                connection.open[end] = false;
                let reason = "closed by the peer".to_owned();
                match end {
                    PRIMARY => self.feed_primary(to.host, PrimaryEvent::PeerClosed { session, reason }),
                    _ => self.feed_secondary(to.host, SecondaryEvent::PeerClosed { session, reason }),
                }
            }
            (Frame::Message(message), PRIMARY) => {
                connection.is_proved |= matches!(message, Message::Proof { .. });
                self.note(|| format!("host {} <- {message:?}", to.host));
                self.feed_primary(to.host, PrimaryEvent::Message { session, message });
            }
            (Frame::Marks(marks), PRIMARY) => {
                if let Some(side) = self.hosts[to.host].primary() {
                    side.copy.peer_marks = marks;
                }
            }
            (Frame::Stored(frames), PRIMARY) => self.copy_stored(to.host, session, frames),
            (_, PRIMARY) => {}
            (frame, _) => self.secondary_receives(to.host, session, frame),
        }
    }

    /// One end closes; the other learns it in order, or at once and without what was on the way.
    pub(super) fn close_end(&mut self, session: u64, end: usize) {
        let connection = &mut self.connections[session as usize];
        if !connection.open[end] {
            return;
        }
        let is_reset = self.rng.random_bool(0.5);
        if is_reset {
            connection.queues[end] = Default::default();
        }
        self.transmit(session, end, Frame::Closed);
        self.connections[session as usize].open[end] = false;
    }

    /// The link of a session breaks, for both ends.
    pub(super) fn reset_session(&mut self, session: u64) {
        self.note(|| format!("session {session} is reset"));
        for end in [PRIMARY, SECONDARY] {
            let connection = &mut self.connections[session as usize];
            if connection.open[end] {
                connection.queues[1 - end] = Default::default();
                connection.queues[1 - end][0].push_back((self.now_us, Frame::Closed));
                let index = session as usize;
                self.after(
                    0,
                    Event::Pump {
                        connection: index,
                        sender: 1 - end,
                        channel: 0,
                    },
                );
            }
        }
    }

    pub(super) fn set_alarm(&mut self, client: usize, delay_us: u64) {
        self.clients[client].alarms += 1;
        let alarm = self.clients[client].alarms;
        self.after(delay_us, Event::Client { client, alarm });
    }

    pub(super) fn client_wakes(&mut self, client: usize, alarm: u64) {
        if self.clients[client].alarms != alarm {
            return;
        }
        let seen = self.checks.history.seen_max;
        let put = self.rng.random_bool(0.6);
        let page = self.rng.random_range(0..CLIENT_PAGES);
        let it = &mut self.clients[client];
        let request = match it.outstanding {
            Some(request) => request,
            None => {
                it.last_id += 1;
                let id = it.last_id;
                let put = put.then_some(id * 100 + client as u64 + 1);
                it.seen_at_send = seen;
                *it.outstanding.insert(Request {
                    client,
                    id,
                    page,
                    put,
                })
            }
        };
        for host in 0..super::HOSTS {
            if self.hosts[host].primary().is_some() && !self.is_cut_off(host) {
                let delay_us = self.some_us(1_500);
                self.tell_after(delay_us, host, ToProcess::Request(request));
            }
        }
        self.set_alarm(client, CLIENT_RETRY_US);
    }

    pub(super) fn client_hears(&mut self, reply: Reply) {
        let it = &mut self.clients[reply.client];
        if reply.life != self.vm_life || it.outstanding.is_none_or(|request| request.id != reply.id) {
            return;
        }
        it.outstanding = None;
        it.last_reply_us = self.now_us;
        let seen_at_send = it.seen_at_send;
        let verdict = self.checks.history.hear(reply, seen_at_send);
        self.judge(Invariant::History, verdict);
        self.note(|| format!("client {} hears {reply:?}", reply.client));
        let think_us = self.some_us(25_000);
        self.set_alarm(reply.client, think_us);
    }

    pub(super) fn write_lands(&mut self, host: usize, boot: u64, life: u64, number: u64, reply: Reply) {
        // Neither the process's death nor its being stopped holds its kernel back;
        // only the loss of power does.
        if self.hosts[host].boot != boot || !self.hosts[host].powered || reply.life != self.vm_life {
            return;
        }
        if !self.setup.replicated {
            // A replicated image that lacks it is none that a stopped VM may be booted from:
            // its record says so.
            let verdict = stop::lands(&self.store, &reply);
            self.judge(Invariant::Stop, verdict);
        }
        // The lock of an image ends when nothing of its user's is under way any more.
        if self.setup.replicated && self.hosts[host].life != life {
            return;
        }
        let fails = self.disk_fails(host);
        let what = match fails {
            true => ToProcess::RequestFailed(number),
            false => ToProcess::WriteDone(number, true),
        };
        self.after(100, Event::Process { host, life, what });
        // What a write that fails leaves is anybody's guess.
        if fails && self.rng.random_bool(0.5) {
            return;
        }
        let before = match self.setup.replicated {
            true => self.hosts[host].image.blocks[reply.page],
            false => self.disk[reply.page],
        };
        let verdict = disk::lands(&before, &reply);
        self.judge(Invariant::Disk, verdict);
        self.note(|| format!("disk: host {host} writes {} to block {}", reply.seq, reply.page));
        match self.setup.replicated {
            true => self.image_written(host, reply.page, (reply.seq, reply.hash)),
            false => self.disk[reply.page] = (reply.seq, reply.hash),
        }
        if !fails {
            self.write_ended(host, number, reply.page, true);
        }
    }
}
