//! A thousand agents that save into one store within ten seconds, group by group on the head they find. There is nobody between them but the
//! bucket: no object may be changed by two of them but the heads of groups, which they swap, and no head may end up behind its newest.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use podsnap_format::SnapshotId;
use tokio::time::{Instant, sleep};

use super::{
    bucket::{Bucket, Link, Weather},
    chance::Chance,
    world::{Machine, runtime, save},
};
use crate::{SaveOptions, names};

const AGENTS: u64 = 1000;
const GROUPS: u64 = 10;

fn group_of(agent: u64) -> String {
    format!("g{}", agent % GROUPS)
}

/// What became of the agents' saves.
struct Saved {
    bucket: Arc<Bucket>,
    /// Agents that were told that they are committed.
    committed: Vec<u64>,
    /// Time at which each committed one began, by its own clock.
    newest: BTreeMap<String, (u64, SnapshotId)>,
    heads: BTreeMap<String, SnapshotId>,
}

/// Lets all agents save in that weather.
fn thousand_saves(weather: Weather) -> Saved {
    runtime().block_on(async {
        let chance = Arc::new(Chance::new(1));
        let (bucket, begun) = (Bucket::new(), Instant::now());
        let machine = {
            let (bucket, chance) = (bucket.clone(), chance.clone());
            move |who: &str, weather| {
                let link = Link::new(&bucket, who, &chance, weather);
                Machine {
                    begun,
                    chance: chance.clone(),
                    lacks: None,
                }
                .store(&link)
            }
        };
        let mut saving = Vec::new();
        for agent in 0..AGENTS {
            let (machine, chance) = (machine.clone(), chance.clone());
            saving.push(tokio::spawn(async move {
                let who = format!("s{agent}");
                sleep(chance.time(&who, Duration::from_secs(10))).await;
                let options = SaveOptions {
                    group: Some(group_of(agent)),
                    ..SaveOptions::default()
                };
                // What the pods of a group have in common, and what they do not.
                let pages = [1, 2, 3, chance.word(&who)];
                save(
                    &machine(&who, weather),
                    &who.parse().unwrap(),
                    &pages,
                    options,
                )
                .await
            }));
        }
        let mut committed = Vec::new();
        for (agent, saving) in saving.into_iter().enumerate() {
            if saving.await.unwrap().is_ok() {
                committed.push(agent as u64);
            }
        }
        let judge = machine("judge", Weather::calm());
        let (mut newest, mut heads) = (BTreeMap::new(), BTreeMap::new());
        for agent in &committed {
            let id: SnapshotId = format!("s{agent}").parse().unwrap();
            let snapshot = judge.snapshot(&id).await.unwrap();
            let created = snapshot.metadata().created_unix_ms;
            let newest = newest.entry(group_of(*agent)).or_insert((0, id.clone()));
            if created > newest.0 {
                *newest = (created, id);
            }
        }
        for group in 0..GROUPS {
            let head = judge.head(&group_of(group)).await.unwrap().unwrap();
            heads.insert(group_of(group), head.snapshot);
        }
        Saved {
            bucket,
            committed,
            newest,
            heads,
        }
    })
}

/// No object was changed by two agents, or by one that it does not belong to, but the heads.
fn assert_each_wrote_its_own(bucket: &Bucket) {
    let mut shared = 0;
    for (name, by) in bucket.changed_by() {
        let (owner, _) = name.split_once('/').unwrap();
        match owner {
            names::HEADS => shared += 1,
            owner => assert!(by.iter().eq([owner]), "{name} was changed by {by:?}"),
        }
    }
    assert_eq!(shared, GROUPS);
    assert_eq!(bucket.dangling(), []);
}

#[test]
fn a_thousand_agents_change_nothing_of_one_another_but_heads() {
    let saved = thousand_saves(Weather::calm());
    assert_eq!(saved.committed.len() as u64, AGENTS);
    assert_each_wrote_its_own(&saved.bucket);
    for (group, head) in &saved.heads {
        assert_eq!(*head, saved.newest[group].1, "the head of {group}");
    }
    let retries = saved.bucket.lost_swaps();
    let (heads, others): (Vec<_>, Vec<_>) = retries
        .into_iter()
        .partition(|(name, _)| name.starts_with("heads/"));
    assert_eq!(others, [], "swaps lost beside heads");
    let lost: u64 = heads.iter().map(|(_, count)| count).sum();
    println!("{AGENTS} saves swapped {GROUPS} heads and lost {lost} swaps to others");
    assert!(lost > 0, "they never met");
    // Each meets some of the hundred of its group, not all of them.
    assert!(lost < 10 * AGENTS, "{lost} swaps of heads were lost");
}

#[test]
fn a_thousand_agents_on_bad_links_change_nothing_of_one_another_but_heads() {
    let saved = thousand_saves(Weather {
        faults: true,
        ..Weather::calm()
    });
    assert_each_wrote_its_own(&saved.bucket);
    let committed = saved.committed.len() as u64;
    println!("{committed} of {AGENTS} were committed");
    assert!((AGENTS / 4..AGENTS).contains(&committed));
}
