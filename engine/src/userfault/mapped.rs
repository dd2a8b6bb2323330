//! A section as memory of this process.

use std::{ops::Range, os::fd::AsFd, ptr::NonNull};

use rustix::mm::{MapFlags, ProtFlags};

use super::{
    features::{Userfault, not_for_children},
    memfd::SharedMemory,
    server::{MemoryServer, ServeOptions},
    table::Region,
};
use crate::{
    error::{Error, Result},
    lazy::SectionReader,
};

/// A section as private memory of this process, whose pages come when they are touched, or before. Children that this process forks do not have it.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Input, NewSection, Role, SaveOptions};
/// # let store = podsnap::Store::open("memory://mapped")?;
/// # let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
/// # let numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
/// # writer.add(NewSection::blob(Role::Memory, "", Input::stream(std::io::Cursor::new(numbers), "numbers"))).await?;
/// # writer.finish().await?;
/// use podsnap::userfault::{Features, MappedSection, ServeOptions};
///
/// # if Features::probe().is_err() {
/// #     return Ok(());
/// # }
/// let snapshot = store.snapshot(&"web-1".parse()?).await?;
/// let reader = snapshot.reader(snapshot.find_section(Role::Memory, "")?);
/// let memory = MappedSection::new(reader, ServeOptions::default())?;
/// // On a thread that is none of the runtime's: it may wait for the runtime to fetch the page.
/// let address = memory.as_ptr() as usize;
/// let number = std::thread::spawn(move || {
///     // SAFETY: the memory outlives this thread, and nobody writes to it.
///     unsafe { *std::ptr::with_exposed_provenance::<u32>(address).add(1234) }
/// });
/// let number = tokio::task::spawn_blocking(|| number.join().unwrap()).await?;
/// assert_eq!(number, 1234);
/// memory.server().filled().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct MappedSection {
    // Dropped before the memory goes.
    server: MemoryServer,
    memory: Mapping,
}

#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    /// The section's bytes in whole pages.
    mapped_len: usize,
    section_len: usize,
}

// SAFETY: the mapping is this one's alone until it is handed out as a pointer.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl MappedSection {
    /// Maps a section.
    pub fn new(reader: SectionReader, options: ServeOptions) -> Result<Self> {
        let userfault = Userfault::open()?;
        let page_size = rustix::param::page_size();
        let memory = Mapping::new(reader.len(), page_size, |len| {
            let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            // SAFETY: a new mapping, at an address of the kernel's choice.
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }
        })?;
        let addresses = memory.addresses();
        not_for_children(&addresses);
        userfault.register(addresses.clone())?;
        let region = Region {
            addresses,
            section_offset: 0,
            page_size: page_size as u64,
        };
        let server = MemoryServer::start(userfault, reader, &[region], options)?;
        Ok(Self { server, memory })
    }

    /// Maps a memfd privately: what is in it already, or comes to it for others, is there at once, and what is written here is seen here only.
    /// To write to a huge page takes a free one, or raises SIGBUS.
    pub fn of(shared: &SharedMemory, options: ServeOptions) -> Result<Self> {
        let userfault = Userfault::open()?;
        let page_size = shared.page_size();
        let mut memory = Mapping::new(shared.len(), page_size as usize, |len| {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // Else each clone would set aside as many huge pages as it might ever write.
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            // SAFETY: as above.
            unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    len,
                    protection,
                    flags,
                    shared.as_fd(),
                    0,
                )
            }
        })?;
        memory.section_len = shared.section_len() as usize;
        let addresses = memory.addresses();
        not_for_children(&addresses);
        userfault.register_shared(addresses.clone())?;
        let region = Region {
            addresses,
            section_offset: 0,
            page_size,
        };
        let server = shared.attach(userfault, &[region], options)?;
        Ok(Self { server, memory })
    }

    /// Where its first byte is. To touch a byte that cannot be had raises SIGBUS. The runtime that serves it must not touch it, or it may wait for itself.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.start.as_ptr()
    }

    /// Bytes of the section.
    pub fn len(&self) -> usize {
        self.memory.section_len
    }

    /// Never: there is no mapping of nothing.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What serves it.
    pub fn server(&self) -> &MemoryServer {
        &self.server
    }
}

impl Mapping {
    fn new(
        section_len: u64,
        page_size: usize,
        map: impl FnOnce(usize) -> rustix::io::Result<*mut std::ffi::c_void>,
    ) -> Result<Self> {
        if section_len == 0 {
            return Err(Error::invalid("an empty section cannot be mapped"));
        }
        let len = (section_len as usize).next_multiple_of(page_size);
        let start =
            map(len).map_err(|e| Error::target_action("map", "memory for a section", e.into()))?;
        let start = NonNull::new(start.cast()).expect("the kernel maps nothing at 0");
        Ok(Self {
            start,
            mapped_len: len,
            section_len: section_len as usize,
        })
    }

    fn addresses(&self) -> Range<u64> {
        let start = self.start.as_ptr().expose_provenance() as u64;
        start..start + self.mapped_len as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and whoever was handed a pointer into it has to know that it is gone.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped_len) };
    }
}
