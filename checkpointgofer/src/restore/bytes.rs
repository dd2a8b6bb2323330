//! Where the bytes of a file come from that is restored.

use std::sync::Arc;

use podsnap_engine::{Result, SectionReader, gvisor::RawFile};

/// A file's bytes.
#[derive(Debug, Clone)]
pub(super) enum FileBytes {
    /// A section of a snapshot.
    Section(Arc<Readers>),
    /// An object that is the file.
    Raw(RawFile),
}

/// Two ways to read a section.
#[derive(Debug)]
pub(super) struct Readers {
    /// What somebody waits for.
    urgent: SectionReader,
    /// What may be asked for later.
    filling: SectionReader,
}

impl FileBytes {
    pub(super) fn of_section(reader: SectionReader) -> Self {
        Self::Section(Arc::new(Readers {
            filling: reader.background(),
            urgent: reader,
        }))
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Section(readers) => readers.urgent.len(),
            Self::Raw(file) => file.len(),
        }
    }

    /// Fills `buf` from `offset`.
    pub(super) async fn read_at(&self, buf: &mut [u8], offset: u64, urgently: bool) -> Result<()> {
        match self {
            Self::Section(readers) if urgently => readers.urgent.read_at(buf, offset).await,
            Self::Section(readers) => readers.filling.read_at(buf, offset).await,
            Self::Raw(file) => file.read_at(buf, offset).await,
        }
    }
}
