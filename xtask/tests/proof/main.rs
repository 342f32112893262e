//! The proof itself on trial: clients and checker against a real Redis, and against servers that lie.

mod database;
mod liar;
mod postgres;
mod redis;

use std::time::Duration;

use liar::{Liar, Lie};
use xtask::proof::checker::{Verdict, check};
use xtask::proof::client::{Swarm, read_all_keys};
use xtask::proof::history::{Clock, History};
use xtask::proof::load::Load;

/// Lets clients work for a while, reads all keys, and judges.
fn drive(load: &Load, work: Duration) -> (History, Verdict) {
    let clock = Clock::start();
    let swarm = Swarm::start(load, clock).unwrap();
    std::thread::sleep(work);
    let mut history = swarm.finish(true).unwrap();
    let read = read_all_keys(load, clock, &history).unwrap();
    history.merge(read);
    let verdict = check(&history).unwrap();
    (history, verdict)
}

fn load_on(lie: Lie) -> (Liar, Load) {
    let liar = Liar::start(lie);
    let load = Load::new(liar.address(), 42);
    (liar, load)
}

#[test]
fn redis_in_a_namespace_is_found_faultless() {
    let redis = redis::Redis::start();
    for pipeline in [1, 4] {
        let load = Load {
            pipeline,
            ..redis.load(pipeline as u64)
        };
        let (history, verdict) = drive(&load, Duration::from_millis(400));
        assert!(
            verdict.is_clean(),
            "{:?} {:?}",
            verdict.lost,
            verdict.contradicted
        );
        assert_eq!(history.connections_lost(), 0);
        assert!(
            history.acknowledged_since_by_connection(0)[..8]
                .iter()
                .all(|&count| count > 0)
        );
        assert!(verdict.reads >= u64::from(load.keys()));
        assert!(history.longest_gap() > 0);
    }
}

#[test]
fn a_redis_that_dies_is_a_lost_connection_each() {
    let redis = redis::Redis::start();
    let load = redis.load(1);
    let swarm = Swarm::start(&load, Clock::start()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    drop(redis);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(swarm.lost(), 8);
    let history = swarm.finish(true).unwrap();
    assert_eq!(history.connections_lost(), 8);
    assert!(check(&history).unwrap().is_clean(), "what it answered was right");
}

#[test]
fn an_honest_server_is_found_faultless() {
    let (_liar, load) = load_on(Lie::None);
    let (history, verdict) = drive(&load, Duration::from_millis(300));
    assert!(
        verdict.is_clean(),
        "{:?} {:?}",
        verdict.lost,
        verdict.contradicted
    );
    assert!(verdict.acknowledged > 100 && history.connections_lost() == 0);
}

#[test]
fn a_server_that_forgets_acknowledged_writes_is_found_out() {
    let (_liar, load) = load_on(Lie::ForgetEvery(200));
    let (_, verdict) = drive(&load, Duration::from_millis(300));
    assert!(!verdict.lost.is_empty());
}

#[test]
fn a_server_that_goes_back_to_an_old_state_is_found_out() {
    let (liar, load) = load_on(Lie::None);
    let clock = Clock::start();
    let swarm = Swarm::start(&load, clock).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    liar.go_back_ms(40);
    std::thread::sleep(Duration::from_millis(50));
    let mut history = swarm.finish(true).unwrap();
    let read = read_all_keys(&load, clock, &history).unwrap();
    history.merge(read);
    assert!(!check(&history).unwrap().lost.is_empty());
}

#[test]
fn a_server_that_answers_from_an_old_state_is_found_out() {
    let (_liar, load) = load_on(Lie::StaleEvery(50));
    let (_, verdict) = drive(&load, Duration::from_millis(300));
    assert!(!verdict.contradicted.is_empty());
}

#[test]
fn a_server_that_answers_twice_is_found_out() {
    let (_liar, load) = load_on(Lie::AnswerTwiceEvery(100));
    let (history, verdict) = drive(&load, Duration::from_millis(300));
    let strays: u64 = history.connections.iter().map(|end| end.stray_answers).sum();
    assert!(!verdict.contradicted.is_empty(), "{strays} stray answers");
}

#[test]
fn a_server_that_refuses_loses_the_connection() {
    let (_liar, load) = load_on(Lie::RefuseEvery(300));
    let clock = Clock::start();
    let swarm = Swarm::start(&load, clock).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let history = swarm.finish(true).unwrap();
    assert!(history.connections_lost() > 0);
    assert!(check(&history).unwrap().is_clean());
}
