use super::*;

const MS: Duration = Duration::from_millis(1);

fn limiter(bytes: Option<(u64, u64)>, operations: Option<(u64, u64)>, now: Instant) -> Limiter {
    let spec = |(per_s, burst)| BucketSpec { per_s, burst };
    let spec = RateSpec {
        bytes: bytes.map(spec),
        operations: operations.map(spec),
    };
    Limiter::new(spec, now)
}

/// How many operations of so many bytes are let at this moment, and when to ask again.
fn taken(limiter: &mut Limiter, bytes: u64, now: Instant) -> (u64, Instant) {
    for count in 0.. {
        match limiter.is_open(now) {
            Ok(()) => limiter.spend(bytes),
            Err(again) => return (count, again),
        }
    }
    unreachable!()
}

#[test]
fn a_burst_goes_at_once_and_what_follows_at_the_rate() {
    let start = Instant::now();
    let mut limiter = limiter(None, Some((1000, 50)), start);
    assert_eq!(taken(&mut limiter, 1 << 40, start).0, 50, "bytes are not limited");
    let mut now = start;
    let mut count = 0;
    while now < start + 1000 * MS {
        let (more, again) = taken(&mut limiter, 1 << 40, now);
        assert!(again >= now + PAUSE_MIN, "nobody is woken for every token");
        (count, now) = (count + more, again);
    }
    assert!((990..=1001).contains(&count), "{count}");
    // What is not taken is not saved beyond the burst.
    assert_eq!(taken(&mut limiter, 1, now + 3_600_000 * MS).0, 50);
}

#[test]
fn what_is_larger_than_the_bucket_goes_and_is_paid_for_afterwards() {
    let start = Instant::now();
    let mut limiter = limiter(Some((1_000_000, 10_000)), None, start);
    let (count, again) = taken(&mut limiter, 1_000_000, start);
    assert_eq!(count, 1);
    let owed = again - start;
    assert!((990 * MS..=991 * MS).contains(&owed), "{owed:?}");
    assert_eq!(taken(&mut limiter, 1, again - MS).0, 0);
    assert_eq!(taken(&mut limiter, 1_000_000, again).0, 1);
}

#[test]
fn the_tighter_of_both_rates_counts() {
    let start = Instant::now();
    let mut small = limiter(Some((1 << 20, 1 << 20)), Some((100, 10)), start);
    assert_eq!(taken(&mut small, 512, start).0, 10);
    let mut large = limiter(Some((1 << 20, 1 << 20)), Some((100, 10)), start);
    assert_eq!(taken(&mut large, 1 << 18, start).0, 4);
    let mut none = limiter(None, None, start);
    for _ in 0..1000 {
        assert_eq!(none.is_open(start), Ok(()));
        none.spend(u64::MAX);
    }
}

#[test]
fn time_that_steps_back_brings_nothing_and_numbers_at_their_ends_do_no_harm() {
    let start = Instant::now() + 10_000 * MS;
    let mut limiter_back = limiter(None, Some((10, 1)), start);
    assert_eq!(taken(&mut limiter_back, 1, start).0, 1);
    assert_eq!(taken(&mut limiter_back, 1, start - 5_000 * MS).0, 0);
    assert_eq!(taken(&mut limiter_back, 1, start + 50 * MS).0, 0);
    let mut huge = limiter(Some((u64::MAX, u64::MAX)), Some((1, 1)), start);
    huge.spend(u64::MAX);
    huge.spend(u64::MAX);
    let again = huge.is_open(start).unwrap_err();
    assert!(again <= start + Duration::from_secs(3600));
    let mut owes = limiter(Some((1, 1)), None, start);
    owes.spend(u64::MAX);
    assert!(owes.is_open(start + Duration::from_secs(1 << 40)).is_err());
}

#[test]
fn a_bucket_that_reaches_its_rate_holds_ten_pauses() {
    assert_eq!(BucketSpec::burst_min(100_000), 1000);
    assert_eq!(BucketSpec::burst_min(5), 1);
    assert!(BucketSpec::burst_min(u64::MAX) > 0);
}

/// Whoever asks whenever he likes, for whatever size, never gets more than burst, rate and one request.
#[test]
fn no_way_of_asking_gets_more_than_the_rate() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |limit: u64| {
        // Numerical Recipes' quick generator: any mixture of sizes and pauses will do.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    for round in 0..500 {
        let (per_s, burst) = (1 + below(1_000_000), 1 + below(100_000));
        let start = Instant::now();
        let mut limiter = limiter(Some((per_s, burst)), None, start);
        let (mut now, mut got, mut largest) = (start, 0, 0);
        for _ in 0..200 {
            now += Duration::from_micros(below(20_000));
            let bytes = 1 + below(50_000);
            if limiter.is_open(now).is_ok() {
                limiter.spend(bytes);
                (got, largest) = (got + bytes, largest.max(bytes));
            }
            let due = u128::from(per_s) * (now - start).as_micros() / 1_000_000;
            let most = u128::from(burst) + due + u128::from(largest) + 1;
            assert!(u128::from(got) <= most, "round {round}: {got} of {most}");
        }
    }
}
