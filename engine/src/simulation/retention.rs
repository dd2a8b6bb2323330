//! Controllers that remove what has had its time, agents that say what they restore, and somebody who pins: the protocol of `used`, `pinned` and
//! `deleting`.

use std::{sync::Arc, time::Duration};

use podsnap_format::SnapshotId;
use tokio::time::{Instant, sleep};

use super::{
    bucket::RETAINER,
    world::{World, read_all},
};
use crate::{
    CancellationToken, Catalog, RetentionPlan, RetentionRules, Store,
    error::{Error, ErrorKind, Result},
};

/// How long what was granted must stay: clocks differ by an hour, and machines sleep between what they write and what they hear.
const GRANTED: Duration = Duration::from_secs(2 * 3600);

fn rules(max_per_group: u32) -> RetentionRules {
    RetentionRules {
        max_per_group: Some(max_per_group),
        restoring: 2 * GRANTED,
        ..RetentionRules::default()
    }
}

impl World {
    pub(super) async fn retainer(self: Arc<Self>, number: u32) {
        for round in 0..5 {
            let who = format!("{RETAINER} {number}.{round}");
            sleep(self.chance.time(&who, Duration::from_secs(4 * 3600))).await;
            let link = self.link(&who);
            let store = self.store(&link);
            let max = 1 + self.chance.below(&who, 2) as u32;
            let work = async {
                let catalog = Catalog::new(&store);
                let Ok(plan) = catalog.plan_retention(&rules(max)).await else {
                    return;
                };
                self.will_go(&plan);
                // Somebody looks at the plan before it is carried out, and saves and removes meanwhile.
                if self.chance.one_in(&who, 2) {
                    sleep(self.chance.time(&who, Duration::from_secs(3600))).await;
                }
                catalog.retain(&plan, &CancellationToken::new()).await;
            };
            self.on(&link, work).await;
        }
    }

    /// Notes what a plan may remove: these versions, and no others.
    fn will_go(&self, plan: &RetentionPlan) {
        let mut told = self.told.lock().unwrap();
        for verdict in &plan.remove {
            let version = verdict.version.as_ref();
            let Some(saver) = version.and_then(|version| self.bucket.saver_of(version)) else {
                continue;
            };
            for one in told.committed.iter_mut().filter(|c| c.saver == saver) {
                one.unwanted = true;
            }
            told.retired.insert(saver);
        }
    }

    /// Finishes, or calls off, what retainers began that died.
    pub(super) async fn retain_quietly(&self, store: &Store) -> Result<()> {
        let catalog = Catalog::new(store);
        let plan = catalog.plan_retention(&rules(u32::MAX)).await?;
        self.will_go(&plan);
        let stats = catalog.retain(&plan, &CancellationToken::new()).await;
        match stats.failed() {
            Some(failed) => Err(Error::new(ErrorKind::Store, &failed.reason)),
            None => Ok(()),
        }
    }

    fn any_id(&self, who: &str) -> Option<SnapshotId> {
        let told = self.told.lock().unwrap();
        let known: Vec<SnapshotId> = told.committed.iter().map(|c| c.id.clone()).collect();
        self.chance.pick(who, &known).cloned()
    }

    /// Says what it restores, and reads it when it has time.
    pub(super) async fn agent(self: Arc<Self>, number: u32) {
        for round in 0..5 {
            let who = format!("agent {number}.{round}");
            sleep(self.chance.time(&who, Duration::from_secs(4 * 3600))).await;
            let link = self.link(&who);
            let store = self.store(&link);
            let Some(id) = self.any_id(&who) else {
                continue;
            };
            let Ok(snapshot) = Catalog::new(&store).begin_restore(&id).await else {
                continue;
            };
            let granted = Instant::now();
            self.told.lock().unwrap().granted += 1;
            sleep(self.chance.time(&who, GRANTED)).await;
            let result = read_all(&snapshot).await;
            let saver = self.bucket.saver_of(snapshot.version()).unwrap();
            let mut told = self.told.lock().unwrap();
            let excused = match &result {
                Ok(_) => true,
                Err(e) if e.kind() == ErrorKind::Store => true,
                // Removed by its name, or taken back by who wrote it.
                Err(_) => {
                    granted.elapsed() > GRANTED
                        || told.removed_by_name.contains(&saver)
                        || !told.savers.contains(&saver)
                }
            };
            if let (false, Err(e)) = (excused, result) {
                let wrong = format!("{who} may restore {id} of {saver}, and cannot: {e}");
                told.wrong.push(wrong);
            }
        }
    }

    pub(super) async fn pinner(self: Arc<Self>) {
        for round in 0..4 {
            let who = format!("pinner {round}");
            sleep(self.chance.time(&who, Duration::from_secs(4 * 3600))).await;
            let store = self.store(&self.link(&who));
            let catalog = Catalog::new(&store);
            let Some(id) = self.any_id(&who) else {
                continue;
            };
            let before = self.bucket.saver_of_snapshot(&id);
            if catalog.pin(&id, "to be kept").await.is_err() {
                continue;
            }
            // Whether it was this one or another that had its name then, nobody knows.
            let saver = self.bucket.saver_of_snapshot(&id);
            let (Some(saver), true) = (saver.clone(), saver == before) else {
                continue;
            };
            {
                let mut told = self.told.lock().unwrap();
                told.pinned.insert(saver.clone());
                told.pins += 1;
            }
            if self.chance.one_in(&who, 2) {
                sleep(self.chance.time(&who, Duration::from_secs(4 * 3600))).await;
                self.told.lock().unwrap().pinned.remove(&saver);
                let _ = catalog.unpin(&id).await;
            }
        }
    }
}
