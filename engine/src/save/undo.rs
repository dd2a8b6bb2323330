//! What a save has in the store before it is committed, and how it goes away again: however the save ends, by an error, by
//! being given up or by nobody waiting for it any more.

use crate::{
    Store,
    error::{Error, Result},
    lease::{self, Lease},
};
use podsnap_format::Header;

use super::packer::{Packed, PackerQueue};

/// The lease and the packs of a save that is not committed. Dropped, it is undone in the background.
pub(crate) struct Unfinished {
    store: Store,
    header: Header,
    /// `None` once this is over.
    parts: Option<Parts>,
}

struct Parts {
    lease: Lease,
    /// `None` once it has ended.
    packer: Option<PackerQueue>,
}

impl Unfinished {
    pub(super) fn new(store: Store, header: Header, lease: Lease, packer: PackerQueue) -> Self {
        let packer = Some(packer);
        Self {
            store,
            header,
            parts: Some(Parts { lease, packer }),
        }
    }

    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("it is not over")
    }

    pub(super) fn lease(&self) -> &Lease {
        &self.parts().lease
    }

    pub(super) fn packer(&self) -> &PackerQueue {
        self.parts()
            .packer
            .as_ref()
            .expect("the packer has not ended")
    }

    /// Closes the last pack.
    pub(super) async fn packed(&mut self) -> Result<Packed> {
        let parts = self.parts.as_mut().expect("it is not over");
        let packer = parts.packer.as_mut().expect("the packer has not ended");
        let packed = packer.finish().await;
        parts.packer = None;
        packed
    }

    /// It is committed: only the lease remains to be dropped.
    pub(super) fn committed(mut self) -> Lease {
        self.parts.take().expect("it is not over").lease
    }

    /// Leaves everything in the store, for the next save of the same id to find.
    pub(super) fn leave(mut self) {
        self.parts = None;
    }

    /// Undoes the save because of `e`; returns what to say of it.
    pub(super) async fn fail(mut self, e: Error) -> Error {
        let gave_up = self
            .parts()
            .packer
            .as_ref()
            .is_some_and(PackerQueue::has_failed);
        // A packer that gave up knows better why.
        let e = match gave_up {
            true => self.packed().await.err().unwrap_or(e),
            false => e,
        };
        let _ = self.undo().await;
        e
    }

    /// Removes everything the save wrote.
    pub(super) async fn undo(mut self) -> Result<()> {
        let Some(parts) = self.parts.take() else {
            return Ok(());
        };
        let undone = tokio::spawn(parts.undo(self.store.clone(), self.header.clone()));
        undone.await.unwrap_or(Ok(()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let (Some(parts), Ok(runtime)) =
            (self.parts.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(parts.undo(self.store.clone(), self.header.clone()));
        }
    }
}

impl Parts {
    async fn undo(self, store: Store, header: Header) -> Result<()> {
        crate::metrics::save_failed();
        if let Some(packer) = self.packer {
            packer.abort().await;
        }
        let backend = &**store.backend();
        let removed = lease::remove_packs(backend, &header.snapshot, header.attempt).await;
        if let Err(error) = removed {
            // With the lease left, the next save of this id will find what is left and remove it.
            tracing::warn!(snapshot = %header.snapshot, %error, "could not remove what was written");
            return Err(error);
        }
        self.lease.give_up().await
    }
}
