//! What a command runs in: the store and its key, how to talk, and the token that ends it.

use std::path::PathBuf;

use podsnap::{CacheOptions, Key, OpenOptions, Progress, Snapshot, Store};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    args::{Global, SnapshotRef, Wanted},
    exit::Failure,
    progress::{Bar, Doing},
    report,
};

/// Shared by all commands.
pub struct Context {
    url: Option<String>,
    key: Option<Key>,
    options: OpenOptions,
    cache: Option<CacheOptions>,
    pub json: bool,
    pub quiet: bool,
    pub cancel: CancellationToken,
}

impl Context {
    pub fn new(global: Global) -> Result<Self, Failure> {
        let mut options = OpenOptions {
            sync: !global.no_sync,
            ..OpenOptions::default()
        };
        if let Some(parts) = global.upload_parts {
            options.gcs.part_len = parts.len as usize;
            options.gcs.parts_at_once = parts.at_once;
        }
        if let Some(ranges) = global.download_ranges {
            options.gcs.read_len = ranges.len;
            options.gcs.reads_at_once = ranges.at_once;
        }
        Ok(Self {
            url: global.store.filter(|url| !url.is_empty()),
            key: global.key_file.map(podsnap::read_key).transpose()?,
            options,
            cache: global.cache.map(|dir| CacheOptions {
                dir,
                max_len: global.cache_size,
            }),
            json: global.json,
            quiet: global.quiet,
            cancel: CancellationToken::new(),
        })
    }

    /// The URL that the arguments, the environment or the default name.
    pub fn url(&self) -> Result<String, Failure> {
        match &self.url {
            Some(url) => Ok(url.clone()),
            None => default_store(),
        }
    }

    /// How stores are opened.
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// The store at that URL.
    pub fn store(&self) -> Result<Store, Failure> {
        self.store_at(&self.url()?)
    }

    /// A store elsewhere, with the key and the options that were given.
    pub fn store_at(&self, url: &str) -> Result<Store, Failure> {
        let store = Store::open_with(url, &self.options, self.key.clone())?;
        Ok(match &self.cache {
            Some(cache) => store.with_cache(cache),
            None => store,
        })
    }

    /// The key, if one was given.
    pub fn key(&self) -> Option<Key> {
        self.key.clone()
    }

    /// A snapshot, and the store whose threads read it.
    pub async fn open(&self, snapshot: &SnapshotRef) -> Result<(Store, Snapshot), Failure> {
        match snapshot {
            SnapshotRef::Stored(id) => {
                let store = self.store()?;
                let snapshot = store.snapshot(id).await?;
                Ok((store, snapshot))
            }
            SnapshotRef::Exported(path) => {
                // An export holds everything, so whatever store is named needs not even exist.
                let store = Store::open_with("memory://export", &self.options, self.key.clone())?;
                Ok((store, Snapshot::open_export(path, self.key.clone()).await?))
            }
        }
    }

    /// The snapshot that is wanted, and the numbers of its sections that are; none of them stand for all.
    pub async fn open_wanted(
        &self,
        wanted: &Wanted,
    ) -> Result<(Store, Snapshot, Vec<usize>), Failure> {
        let (store, snapshot) = self.open(&wanted.snapshot).await?;
        if let Some(digest) = &wanted.digest {
            snapshot.demand_digest(digest)?;
        }
        let mut numbers = Vec::new();
        for section in &wanted.section {
            let number = snapshot.find_section(section.role, &section.name)?;
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        Ok((store, snapshot, numbers))
    }

    /// A progress bar, if somebody sits there to see it.
    pub fn bar(&self, doing: Doing, progress: &Progress) -> Bar {
        if self.json || self.quiet {
            Bar::hidden()
        } else {
            Bar::start(doing, progress.clone())
        }
    }

    /// Prints what a command did: `document` as JSON, or the text, unless the user wants quiet.
    pub fn report(
        &self,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.json {
            report::print(&report::json(document))
        } else if self.quiet {
            Ok(())
        } else {
            report::print(&text())
        }
    }

    /// Prints what a command was asked to show; quiet does not hide it.
    pub fn show(
        &self,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.json {
            self.report(document, String::new)
        } else {
            report::print(&text())
        }
    }
}

fn default_store() -> Result<String, Failure> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let data = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    data.and_then(|dir| dir.join("podsnap").into_os_string().into_string().ok())
        .ok_or_else(|| {
            Failure::usage("no store is named and there is no home directory")
                .hint("give --store or set PODSNAP_STORE")
        })
}
