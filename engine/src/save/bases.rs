//! The snapshots that a save deduplicates against: which are wanted, which are there, and whose packs it comes to rely on.

use std::collections::BTreeSet;

use podsnap_format::SnapshotId;

use super::SaveOptions;
use crate::{
    Store,
    base::BaseIndex,
    error::{Error, ErrorKind, Result},
    heads,
    snapshot::Snapshot,
};

pub(super) struct WantedBase {
    id: SnapshotId,
    /// Whether the caller named it, so that its absence is an error.
    required: bool,
}

impl WantedBase {
    /// That it is gone: an error if the caller named it.
    fn is_gone(&self) -> Result<()> {
        if self.required {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("the base {} does not exist", self.id),
            ));
        }
        tracing::info!(base = %self.id, "the group's head is gone; saving without a base");
        Ok(())
    }
}

pub(super) async fn wanted_bases(store: &Store, options: &SaveOptions) -> Result<Vec<WantedBase>> {
    if !options.bases.is_empty() {
        return Ok(options
            .bases
            .iter()
            .map(|id| WantedBase {
                id: id.clone(),
                required: true,
            })
            .collect());
    }
    let Some(group) = &options.group else {
        return Ok(Vec::new());
    };
    let head = heads::read(&**store.backend(), group).await?;
    Ok(head
        .into_iter()
        .map(|(head, _)| WantedBase {
            id: head.snapshot,
            required: false,
        })
        .collect())
}

pub(super) async fn open_bases(store: &Store, wanted: &[WantedBase]) -> Result<Vec<Snapshot>> {
    let mut opened = Vec::new();
    for base in wanted {
        match Snapshot::open(store, &base.id).await {
            Ok(snapshot) => opened.push(snapshot),
            Err(e) if e.kind() == ErrorKind::NotFound => base.is_gone()?,
            Err(e) if e.is_absence() && !base.required => base.is_gone()?,
            Err(e) => return Err(e),
        }
    }
    Ok(opened)
}

/// The bases and all snapshots in whose packs their chunks lie: a base may itself be removed while its packs stay.
pub(super) fn relied_on(bases: &[Snapshot]) -> Vec<String> {
    let of = |base: &Snapshot| {
        let packs = base
            .directory()
            .packs
            .iter()
            .map(|pack| pack.snapshot.to_string());
        packs.chain([base.id().to_string()]).collect::<Vec<_>>()
    };
    bases
        .iter()
        .flat_map(of)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Reads the extent maps of the bases that are still there.
pub(super) async fn load_bases(
    wanted: &[WantedBase],
    opened: &mut Vec<Snapshot>,
) -> Result<(Vec<String>, BaseIndex)> {
    for base in wanted {
        if let Some(at) = opened.iter().position(|snapshot| *snapshot.id() == base.id)
            && !opened[at].still_there().await?
        {
            base.is_gone()?;
            opened.remove(at);
        }
    }
    let names = opened.iter().map(|s| s.id().to_string()).collect();
    Ok((names, BaseIndex::load(opened).await?))
}
