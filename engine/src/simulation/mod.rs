//! A simulation of hundreds of hours in a bucket that savers, removers, restorers and collectors share, with everything going wrong that
//! can. It drives the engine's own code on a bucket and clocks of its own; a seed repeats a run.
//!
//! Promised, and looked for: no manifest ever needs a pack that is gone, no committed snapshot is lost, no restore that began before a gentle
//! removal fails, and two quiet passes find all garbage but notes, which take four. Retention never removes the last of a group, nor what is pinned, nor what somebody was told
//! to be his to restore within two hours, and leaves no group that has snapshots without one to restore. That it would notice is shown by leaving safeguards out, one at a time.

mod agents;
mod bucket;
mod chance;
mod retention;
mod world;

use std::{env, time::Instant};

use self::world::{Outcome, Setting, run};
use crate::host::Safeguard;

/// Seeds that are run every day.
const DAILY: u64 = 300;

/// Seeds that once went wrong, and are run every day as well.
const ONCE_WRONG: [u64; 4] = [1889, 1994, 7382, 9571];

/// Seeds that are run when there is time.
const LONG: u64 = 10_000;

fn is_long() -> bool {
    env::var("PODSNAP_LONG_TESTS").is_ok_and(|long| long == "1")
}

fn report(seed: u64, outcome: &Outcome) -> String {
    let wrong = outcome.wrong.join("\n  ");
    let mut text = format!("seed {seed} (PODSNAP_SIMULATION_SEED={seed} repeats it):\n  {wrong}\n");
    if env::var_os("PODSNAP_SIMULATION_SEED").is_some() {
        text.push_str(&outcome.log.join("\n"));
    }
    text
}

#[test]
fn nothing_is_lost_and_nothing_is_left_over() {
    let seeds: Vec<u64> = match env::var("PODSNAP_SIMULATION_SEED") {
        Ok(seed) => {
            vec![seed.parse().expect("a number")]
        }
        Err(_) if is_long() => (0..LONG).collect(),
        Err(_) => (0..DAILY).chain(ONCE_WRONG).collect(),
    };
    let (begun, count) = (Instant::now(), seeds.len() as u64);
    let mut all = Outcome::default();
    let mut wrong = Vec::new();
    for seed in seeds {
        let outcome = run(Setting { seed, lacks: None });
        if !outcome.wrong.is_empty() {
            wrong.push(report(seed, &outcome));
        }
        all.saves += outcome.saves;
        all.failed_saves += outcome.failed_saves;
        all.restores += outcome.restores;
        all.removals += outcome.removals;
        all.crashes += outcome.crashes;
        all.granted += outcome.granted;
        all.retired += outcome.retired;
        all.pinned += outcome.pinned;
    }
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    println!(
        "{count} seeds, {rate:.0} a second: {} saves and {} that failed, {} restores and {} that were announced, {} removals, {} retired, {} pinned, {} machines died",
        all.saves,
        all.failed_saves,
        all.restores,
        all.granted,
        all.removals,
        all.retired,
        all.pinned,
        all.crashes
    );
    assert!(
        wrong.is_empty(),
        "{} of {count} seeds went wrong\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // What it is meant to show did happen.
    if count >= DAILY {
        for (what, times) in [
            ("saves", all.saves),
            ("failed saves", all.failed_saves),
            ("restores", all.restores),
            ("announced restores", all.granted),
            ("removals", all.removals),
            ("deaths", all.crashes),
        ] {
            assert!(times >= count, "only {times} {what} in {count} seeds");
        }
        let retired = all.retired;
        assert!(
            retired >= count / 2,
            "only {retired} were retired in {count} seeds"
        );
    }
}

#[test]
fn a_seed_repeats_itself() {
    let seeds = if is_long() { 1000 } else { 5 };
    for seed in 0..seeds {
        let [first, second] = [(), ()].map(|()| run(Setting { seed, lacks: None }));
        for (first, second) in first.log.iter().zip(&second.log) {
            assert_eq!(first, second, "seed {seed}");
        }
        assert_eq!(first.log.len(), second.log.len(), "seed {seed}");
    }
}

/// Seeds until one goes wrong without a safeguard.
fn seeds_until_caught(safeguard: Safeguard) -> u64 {
    for seed in 0..2000 {
        let lacks = Some(safeguard);
        let outcome = run(Setting { seed, lacks });
        if !outcome.wrong.is_empty() {
            let whole = run(Setting { seed, lacks: None });
            assert!(whole.wrong.is_empty(), "{}", report(seed, &whole));
            println!(
                "without {safeguard:?}, caught by {}",
                report(seed, &outcome)
            );
            return seed + 1;
        }
    }
    panic!("2000 seeds do not notice that {safeguard:?} is missing");
}

#[test]
fn saves_that_do_not_check_their_lease_are_caught() {
    seeds_until_caught(Safeguard::LeaseCheck);
}

#[test]
fn collections_without_a_second_pass_are_caught() {
    seeds_until_caught(Safeguard::SecondPass);
}

#[test]
fn deletions_that_name_no_version_are_caught() {
    seeds_until_caught(Safeguard::Generation);
}

#[test]
fn retention_that_does_not_look_for_use_is_caught() {
    seeds_until_caught(Safeguard::UseCheck);
}

#[test]
fn retention_that_removes_whatever_has_the_id_is_caught() {
    seeds_until_caught(Safeguard::JudgedVersion);
}
