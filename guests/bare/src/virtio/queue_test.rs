use super::*;

/// A device that looks at the rings as the specification says.
struct Device {
    seen: u16,
    used: u16,
    taken: Vec<u16>,
}

impl Device {
    fn take(&mut self, queue: &Queue<u32>) {
        while self.seen != queue.load(AVAIL_INDEX) {
            self.taken
                .push(queue.load(AVAIL_RING + 2 * usize::from(self.seen % QUEUE_SIZE)));
            self.seen = self.seen.wrapping_add(1);
        }
    }

    /// Returns a taken request, and whether the driver wants an interrupt for it.
    fn finish(&mut self, queue: &Queue<u32>, which: usize) -> bool {
        let head = self.taken.remove(which % self.taken.len());
        let element = queue
            .at(USED_RING + 8 * usize::from(self.used % QUEUE_SIZE))
            .cast::<u32>();
        // SAFETY: an element of the used ring.
        unsafe {
            element.write_volatile(u32::from(head));
            element.add(1).write_volatile(7);
        }
        let before = self.used;
        self.used = self.used.wrapping_add(1);
        queue.store(USED_INDEX, self.used);
        if queue.event_idx {
            let event = queue.load(USED_EVENT);
            self.used.wrapping_sub(event).wrapping_sub(1) < self.used.wrapping_sub(before)
        } else {
            queue.load(AVAIL_FLAGS) & SUPPRESS == 0
        }
    }
}

const SEGMENTS: [Segment; 3] = [
    Segment {
        address: 0x1000,
        bytes: 16,
        device_writes: false,
    },
    Segment {
        address: 0x2000,
        bytes: 512,
        device_writes: true,
    },
    Segment {
        address: 0x3000,
        bytes: 1,
        device_writes: true,
    },
];

/// Keeps the queue busy until its indexes have wrapped twice;
/// the device finishes in any order and notifies by rule.
fn run(event_idx: bool, indirect: bool) {
    let mut queue = Queue::new(event_idx, indirect);
    let mut device = Device {
        seen: 0,
        used: 0,
        taken: Vec::new(),
    };
    let mut expected = std::collections::BTreeSet::new();
    let mut asleep = true;
    for round in 0..150_000u32 {
        if queue.has_room(1) {
            queue.add(&SEGMENTS[..1 + (round % 3) as usize], round);
            expected.insert(round);
        }
        if round % 4 != 0 {
            if queue.must_notify() {
                asleep = false;
            } else if round % 4 == 3 {
                assert!(
                    !asleep || queue.load(AVAIL_INDEX) == device.seen,
                    "a kick is missing at {round}"
                );
            }
        }
        if !asleep {
            device.take(&queue);
            queue.store(AVAIL_EVENT, device.seen);
            asleep = true;
        }
        let mut interrupted = false;
        while device.taken.len() > (round % 37) as usize {
            interrupted |= device.finish(&queue, round as usize * 7);
        }
        let mut popped = false;
        if interrupted {
            while let Some((token, bytes)) = queue.pop() {
                assert_eq!(bytes, 7);
                assert!(expected.remove(&token), "{token} came twice");
                popped = true;
            }
        }
        assert!(
            popped || queue.load(USED_INDEX) == queue.used_index,
            "an interrupt is missing at {round}"
        );
    }
    assert!(expected.len() <= usize::from(QUEUE_SIZE));
}

#[test]
fn no_request_and_no_notification_is_lost_over_wrapping_indexes() {
    for (event_idx, indirect) in [(false, false), (false, true), (true, false), (true, true)] {
        run(event_idx, indirect);
    }
}

#[test]
fn interrupts_that_are_off_stay_off_until_something_is_wanted() {
    for event_idx in [false, true] {
        let mut queue = Queue::new(event_idx, true);
        let mut device = Device {
            seen: 0,
            used: 0,
            taken: Vec::new(),
        };
        queue.set_interrupts(false);
        for token in 0..10 {
            queue.add(&SEGMENTS, token);
            device.take(&queue);
            assert!(!device.finish(&queue, 0));
        }
        assert!(queue.set_interrupts(true), "finished requests are waiting");
        while queue.pop().is_some() {}
        queue.add(&SEGMENTS, 10);
        device.take(&queue);
        assert!(device.finish(&queue, 0));
    }
}

#[test]
#[should_panic(expected = "which it did not have")]
fn a_device_that_returns_what_it_never_had_is_noticed() {
    let mut queue = Queue::new(false, false);
    queue.add(&SEGMENTS, 1);
    let mut device = Device {
        seen: 0,
        used: 0,
        taken: vec![99],
    };
    device.finish(&queue, 0);
    queue.pop();
}
