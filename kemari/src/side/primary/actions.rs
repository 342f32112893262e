//! What the core wants done.

use std::time::{Duration, Instant};

use kemari_sync::wire::{Begin, Channel, Message, encode};
use kemari_sync::{Epoch, Opening, PrimaryAction, PrimaryEvent, SessionId};

use super::super::capture::{AtOnce, Capture, Known};
use super::super::copy::{Next, QUEUED_BYTES_MAX};
use super::super::trace::Step;
use super::super::{clock, faults};
use super::holds::Hold;
use super::stopwatch::micros;
use super::{End, Input, PrimarySide};
use crate::link::{LinkError, Outgoing};
use crate::threads::helpers;

/// How long a copy is handed to a link that takes it as fast as it comes before the loop has its turn:
/// heartbeats must go on, or the secondary takes this side for silent.
const PUMP_TIME_MAX: Duration = Duration::from_millis(20);

impl PrimarySide {
    pub(super) fn perform(&mut self, action: PrimaryAction) {
        match action {
            PrimaryAction::Send { session, message } => self.send(session, message),
            PrimaryAction::MarkSources { session, plans } => self.mark_sources(session, &plans),
            PrimaryAction::CopyDisks { session, .. } => self.copy_disks(session),
            PrimaryAction::PeerFlushed(mark) => self.disks.note_peer_flushed(mark),
            PrimaryAction::CopyRound { session, first } => self.begin_round(session, first),
            PrimaryAction::Capture {
                epoch, hold, at_once, ..
            } => {
                if !(hold && self.await_still_disks(epoch)) {
                    self.capture(epoch, hold, at_once);
                }
            }
            PrimaryAction::SendAhead(opening) => self.send_ahead(opening),
            PrimaryAction::Transmit { session, begin, stop } => self.transmit(session, begin, stop),
            PrimaryAction::GiveBack { epoch } => self.give_back(epoch),
            PrimaryAction::Release { epoch } => self.release(epoch),
            PrimaryAction::Pause => {
                self.holds.add(Hold::Mechanism);
                // A vCPU that resets a device waits for the release of what is captured,
                // which is this thread's work.
                self.machine.begin_pause();
            }
            PrimaryAction::Resume => self.resume(),
            PrimaryAction::Assume(record) => self.arbiter.assume(record),
            PrimaryAction::Ask { ask, request } => self.ask(ask, request),
            PrimaryAction::OpenGate => self.open_gate(),
            PrimaryAction::Drain => self.drain(),
            PrimaryAction::CloseDisks => self.close_disks(),
            PrimaryAction::Halt { reason } => self.halt(reason),
            PrimaryAction::CloseSession { session, reason } => self.close_session(session, &reason),
            PrimaryAction::Exit { reason } => self.end = Some(End::Stopped(reason)),
            PrimaryAction::Progress { round, dirty_pages } => {
                tracing::info!("copy round {round}: {dirty_pages} pages are left");
            }
            PrimaryAction::TrustArbiter => {
                tracing::warn!(
                    "the arbiter's store is the right one, and no other host runs the VM, says the operator"
                );
                self.board.trust_arbiter();
            }
            PrimaryAction::Adopted(outcome) => self.on_adopted(outcome),
            PrimaryAction::Report(text) => tracing::info!("{text}"),
        }
    }

    pub(super) fn send(&mut self, id: SessionId, mut message: Message) {
        clock::stamp(&mut message, self.board.mtus());
        let mut bytes = Vec::new();
        encode(&message, &mut bytes);
        self.peer.on_link(id, |session| match message.channel() {
            Channel::Main => session.main.send(bytes),
            Channel::Heartbeat => session.heartbeat.send(bytes),
        });
    }

    fn transmit(&mut self, id: SessionId, begin: Begin, stop: bool) {
        let epoch = begin.epoch;
        if begin.base.is_none() && !self.finish_disk_copy(id, begin.term) {
            return;
        }
        let Some(capture) = self.capture.as_mut().filter(|capture| capture.epoch == epoch) else {
            return;
        };
        self.trace.note(Step::Sending, epoch);
        let ahead_in = self.owed.debt.went_ahead_in(epoch);
        let buffers = capture.transmission(id, ahead_in, begin, stop);
        let at_once = capture.took.send;
        if faults::cuts_frame(epoch) {
            return self.cut_in_frame(id, buffers);
        }
        self.stopwatch.counters.wire_bytes += buffers
            .iter()
            .map(|buffer| buffer.rest().len() as u64)
            .sum::<u64>();
        self.stopwatch.sending(self.clock.now_us());
        self.peer.on_link(id, |session| session.main.send_all(buffers));
        self.stopwatch.sent(self.clock.now_us(), at_once);
        self.expect_ack();
        self.trace.note(Step::AwaitingAck, epoch);
        self.events.push_back(PrimaryEvent::Transmitted { epoch });
    }

    /// A fault for tests: half of a sync, then nothing.
    fn cut_in_frame(&mut self, id: SessionId, buffers: [Outgoing; 3]) {
        let [opening, mut frames, _] = buffers;
        frames.truncate(frames.rest().len() / 2);
        self.peer
            .on_link(id, |session| session.main.send_all([opening, frames]));
        self.lose_session(LinkError::Closed);
    }

    fn begin_round(&mut self, session: SessionId, first: bool) {
        self.trace.note(Step::Copying, 0);
        if first {
            // A new standby VM: it has neither pages nor states yet.
            self.known_states.forget();
            self.deltas.forget();
        }
        if let Err(error) = self.owed.begin_round(&self.machine, first) {
            self.fail_protection(format!("the first copy cannot be made: {error:#}"));
        } else if self.peer.id() != Some(session) {
            self.owed.copy.end();
        }
    }

    /// Whether what is pumped must wait for the loop's next turn, which then comes at once.
    pub(super) fn ends_pumping(&self, since: Instant) -> bool {
        let ends = since.elapsed() >= PUMP_TIME_MAX;
        if ends {
            self.mailbox.post(Input::Wake);
        }
        ends
    }

    /// Hands pages of the round to the link as long as it takes them.
    pub(super) fn pump_copy(&mut self) {
        let begin = Instant::now();
        while self.owed.copy.is_active() && !self.ends_pumping(begin) {
            let Some(session) = self.peer.session() else {
                return self.owed.copy.end();
            };
            let id = session.id;
            if session.main.queued_bytes() > QUEUED_BYTES_MAX {
                return;
            }
            match self.owed.copy.next_frame(&self.machine) {
                Ok(Next::Frame(frame)) => self.peer.on_link(id, |session| session.main.send(frame)),
                Ok(Next::Nothing) => {}
                Ok(Next::Done) if self.disks.must_go_on() => return,
                Ok(Next::Done) => match self.owed.end_round(&self.machine) {
                    Ok(dirty_pages) => {
                        self.events.push_back(PrimaryEvent::CopyRoundSent {
                            session: id,
                            dirty_pages,
                        });
                    }
                    Err(error) => self.fail_protection(format!("the dirty log cannot be read: {error:#}")),
                },
                Err(error) => self.fail_protection(format!("guest memory cannot be read: {error:#}")),
            }
        }
    }

    /// Dirty pages of the next sync, while the guest runs.
    fn send_ahead(
        &mut self,
        Opening {
            session: id,
            begin,
            pages_max,
        }: Opening,
    ) {
        // What is known of the secondary's pages gets old.
        self.deltas.forget();
        let of = (id, begin.epoch);
        let opening = |out: &mut Vec<u8>| {
            encode(&Message::Begin(begin), out);
        };
        let pages_max = usize::try_from(pages_max).unwrap_or(usize::MAX);
        let now_us = self.clock.now_us();
        match self
            .owed
            .send_ahead(&self.machine, of, pages_max, now_us, opening)
        {
            Ok(bytes) => {
                self.stopwatch.counters.wire_bytes += bytes.len() as u64;
                self.peer.on_link(id, |session| session.main.send(bytes));
            }
            Err(error) => self.fail_protection(format!("guest memory cannot be read: {error:#}")),
        }
    }

    /// The guest goes on, unless the other host can go on with it. The mechanism tells what it does of it:
    /// this may come again and again, and nothing follow.
    pub(super) fn fail_protection(&mut self, reason: String) {
        self.owed.copy.end();
        self.events.push_back(PrimaryEvent::ProtectionFailing { reason });
    }

    pub(super) fn fail_host(&mut self, reason: String) {
        tracing::error!("{reason}");
        self.owed.copy.end();
        self.events.push_back(PrimaryEvent::HostFailing { reason });
    }

    pub(super) fn capture(&mut self, epoch: Epoch, hold: bool, at_once: Option<Opening>) {
        self.holds.add(Hold::Mechanism);
        // The pause before ends here, whatever this one waits for.
        self.note_inline_pause();
        let since_us = self.stillness.want(epoch, hold, self.clock.now_us());
        if self.must_wait_for_reset() || self.must_wait_for_vcpus() {
            return;
        }
        self.trace.note(Step::Capturing, epoch);
        self.stillness.forget(epoch);
        self.stopwatch.pause(since_us);
        self.demand.begin_sync();
        if hold && let Err(error) = self.demand.attach(&self.machine) {
            let reason = error.to_string();
            return self
                .events
                .push_back(PrimaryEvent::CaptureFailed { epoch, reason });
        }
        let session_id = self.peer.id();
        let (ahead_in, ahead) = self.owed.begin_capture(epoch, self.clock.now_us());
        // A delta must be the first word of its sync on a page.
        let deltas = match ahead {
            Some(_) => None,
            None => self.deltas.for_sync(),
        };
        let mut session = self.peer.session_mut();
        let buffer = session
            .as_mut()
            .map(|session| session.main.take_spare())
            .unwrap_or_default();
        let mut send = |bytes: &[u8]| {
            session
                .as_mut()
                .is_some_and(|session| session.main.send_now(bytes))
        };
        let at_once = at_once
            .filter(|opening| {
                let went_there = ahead_in.is_none_or(|session| session == opening.session);
                session_id == Some(opening.session) && went_there
            })
            .map(|opening| AtOnce {
                opening,
                send: &mut send,
            });
        let taken = Capture::take(
            &self.machine,
            (epoch, hold),
            (&mut self.owed.debt, ahead),
            Known {
                states: self.known_states.acked_states(),
                deltas,
            },
            at_once,
            buffer,
        );
        // Everything that was held is in it now, also what came while it paused the guest.
        self.demand.looked();
        self.on_captured(epoch, taken);
    }

    fn on_captured(&mut self, epoch: Epoch, taken: anyhow::Result<Capture>) {
        match taken {
            Ok(mut capture) => {
                let states = std::mem::take(&mut capture.states);
                self.known_states.captured(epoch, states);
                self.stopwatch.captured(&capture.took, self.clock.now_us());
                let counters = &mut self.stopwatch.counters;
                counters.wire_bytes += capture.sent_bytes() as u64;
                counters.pages += capture.pages_sent();
                counters.pages_ahead += capture.pages_ahead;
                self.events.push_back(PrimaryEvent::Captured {
                    epoch,
                    pages: capture.pages_sent(),
                    bytes: capture.frames.len() as u64,
                    stop: capture.stop,
                });
                self.capture = Some(capture);
            }
            Err(error) => {
                self.deltas.failed();
                self.owed.debt.give_back(epoch);
                self.machine.give_back(epoch);
                self.events.push_back(PrimaryEvent::CaptureFailed {
                    epoch,
                    reason: format!("{error:#}"),
                });
            }
        }
    }

    fn give_back(&mut self, epoch: Epoch) {
        self.demand.end_sync();
        self.stopwatch.counters.syncs_failed += 1;
        self.deltas.failed();
        self.known_states.failed();
        self.stillness.forget(epoch);
        self.owed.debt.give_back(epoch);
        if self.capture.take_if(|capture| capture.epoch == epoch).is_some() {
            self.machine.give_back(epoch);
        }
        self.ask_again_for_held();
    }

    fn release(&mut self, epoch: Epoch) {
        self.trace.note(Step::Releasing, epoch);
        if !self.rule_disks(true) {
            // Whoever parts releases it, and another sync may come before that. The secondary has committed
            // this one: it has not what a sync that is given back leaves there, and nothing is known of it.
            self.known_states.forget();
            self.deltas.forget();
            return self.give_back(epoch);
        }
        self.demand.end_sync();
        let acked_us = self.clock.now_us();
        // First of all: what waits outside waits for this, and for nothing that is put away below.
        self.machine.release(epoch);
        self.owed.debt.acked(epoch);
        let mut outputs = 0;
        if let Some(capture) = self.capture.take_if(|capture| capture.epoch == epoch) {
            outputs = capture.outputs;
            self.known_states.acked(epoch);
            let capture_us = micros(capture.took.encode + capture.took.send);
            let wire_us = self.stopwatch.wire_us(acked_us);
            self.deltas.acked(epoch);
            self.deltas
                .note(capture_us + wire_us, capture.pages, self.demand.gather.way());
        }
        let now_us = self.clock.now_us();
        self.stopwatch.acked(now_us);
        self.extend_train();
        self.trace.note(Step::Running, epoch);
        let sync_us = now_us.saturating_sub(self.stopwatch.paused_us());
        self.demand.note(now_us, sync_us, outputs);
        self.let_guest_wait(self.demand.gather.stands_still());
        if self.machine.output_held() && !self.demand.gathers(now_us) {
            self.events.push_back(PrimaryEvent::OutputPending);
        }
    }

    /// From the next sync on the guest waits for the ack, or does not.
    pub(super) fn let_guest_wait(&mut self, waits: bool) {
        if self.holds.hold_until_ack(waits) {
            self.events.push_back(PrimaryEvent::GuestWaits(waits));
        }
    }

    /// Output that came after the capture waits for the next sync.
    pub(super) fn ask_again_for_held(&mut self) {
        if self.machine.output_held() {
            self.events.push_back(PrimaryEvent::OutputPending);
        }
    }

    fn resume(&mut self) {
        self.holds.remove(Hold::Mechanism);
        if self.polling.is_on_vcpu() {
            // Its guest runs on when this thread has done what else there is to do.
            self.stopwatch.leave_pause();
        } else {
            self.note_pause();
        }
        self.resume_unless_held();
    }

    /// The pause ends now that a vCPU's thread has left to be noted.
    pub(super) fn note_inline_pause(&mut self) {
        if self.stopwatch.takes_left_pause() {
            self.note_pause();
        }
    }

    fn note_pause(&mut self) {
        self.stopwatch.note_pause(self.clock.now_us());
    }

    /// The right to act alone: output leaves at once, nobody is owed pages.
    fn open_gate(&mut self) {
        self.end_disk_pair();
        if !self.rule_disks(false) {
            return;
        }
        self.demand.detach();
        self.capture = None;
        self.deltas.forget();
        self.demand.end_sync();
        self.owed.forget();
        self.machine.open_gate();
        if let Err(error) = self.machine.dirty().stop() {
            tracing::warn!("the dirty log cannot be stopped: {error}");
        }
        self.run_unless_held();
    }

    fn drain(&mut self) {
        // The guest hears no more of it here, or only if no other host goes on.
        self.end_disk_pair();
        self.holds.add(Hold::Mechanism);
        if !self.core.is_switching() {
            // The VM ends: a failed disk must not keep it.
            self.machine.report_all_disk_errors();
        }
        let (machine, mailbox, drain) = (
            self.machine.clone(),
            self.mailbox.clone(),
            self.stillness.begin_drain(),
        );
        // The requests that it waits for are finished by other threads; the loop must go on meanwhile.
        helpers::run("drain", move || {
            machine.drain();
            mailbox.post(Input::Drained(drain));
        });
    }

    fn halt(&mut self, reason: String) {
        self.demand.detach();
        self.end = Some(End::Halted(reason));
        // Halting takes a while, in which another host has the VM already.
        self.show();
        self.machine.halt();
    }
}
