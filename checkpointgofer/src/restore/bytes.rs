//! Where the bytes of a file come from that is restored.

use podsnap_engine::{Result, SectionReader, gvisor::RawFile};

/// A file's bytes.
#[derive(Debug, Clone)]
pub(super) enum FileBytes {
    /// A section of a snapshot.
    Section {
        /// Reads what somebody waits for.
        urgent: SectionReader,
        /// Reads what may be asked for later.
        filling: SectionReader,
    },
    /// An object that is the file.
    Raw(RawFile),
}

impl FileBytes {
    pub(super) fn of_section(reader: SectionReader) -> Self {
        Self::Section {
            filling: reader.background(),
            urgent: reader,
        }
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Section { urgent, .. } => urgent.len(),
            Self::Raw(file) => file.len(),
        }
    }

    /// Fills `buf` from `offset`.
    pub(super) async fn read_at(&self, buf: &mut [u8], offset: u64, urgently: bool) -> Result<()> {
        match self {
            Self::Section { urgent, .. } if urgently => urgent.read_at(buf, offset).await,
            Self::Section { filling, .. } => filling.read_at(buf, offset).await,
            Self::Raw(file) => file.read_at(buf, offset).await,
        }
    }
}
