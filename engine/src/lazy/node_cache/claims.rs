//! Who of a node's processes reads what from the store just now: locks on bytes of a file that stand for bytes of objects.
//!
//! The kernel drops the locks of a process that dies. A claim is a courtesy: whoever does not get one waits a while for
//! the other one's frames, and then reads them as well.

use std::{fs::File, io, ops::Range, path::Path, sync::Arc};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

use crate::lazy::Priority;

/// Bits of a lock's place that stand for the offset in an object; those above stand for the object.
const OFFSET_BITS: u32 = 40;

/// Bits that stand for the object. With one more above them, which says how urgent it is, they are no negative file offset.
const OBJECT_BITS: u32 = 21;

/// The locks. Those of one process never stand in each other's way: within a process [`Chunks`](super::super::Chunks) sees to that.
#[derive(Debug)]
pub(super) struct Claims(Arc<File>);

/// The claim of a range of an object. Dropped, it is given back.
pub(crate) struct Claim {
    file: Arc<File>,
    place: libc::flock,
}

impl Claims {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("claims"))?;
        Ok(Self(Arc::new(file)))
    }

    /// A claim, unless another process has one of the same priority that overlaps. Where there are no locks everybody has one.
    pub(super) fn claim(
        &self,
        object: &str,
        range: &Range<u64>,
        priority: Priority,
    ) -> Option<Claim> {
        let mut of_object = crc32fast::hash(object.as_bytes()) & ((1 << OBJECT_BITS) - 1);
        if priority == Priority::Background {
            of_object |= 1 << OBJECT_BITS;
        }
        let offset = range.start & ((1 << OFFSET_BITS) - 1);
        let place = libc::flock {
            l_type: libc::F_WRLCK as _,
            l_whence: libc::SEEK_SET as _,
            l_start: (i64::from(of_object) << OFFSET_BITS) + offset as i64,
            l_len: (range.end - range.start).max(1) as i64,
            l_pid: 0,
        };
        match fcntl(&*self.0, FcntlArg::F_OFD_SETLK(&place)) {
            Err(Errno::EAGAIN | Errno::EACCES) => None,
            _ => Some(Claim {
                file: self.0.clone(),
                place,
            }),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.place.l_type = libc::F_UNLCK as _;
        let _ = fcntl(&*self.file, FcntlArg::F_OFD_SETLK(&self.place));
    }
}
