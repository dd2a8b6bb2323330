//! All resources of a file or a directory, and how they refer to one another.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{
    API_GROUP, Error, Metadata, Pod, PodSnapshotManualTrigger, PodSnapshotPolicy,
    PodSnapshotStorageConfig, error::quoted, field::Field, yaml,
};

/// What files say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// Where snapshots are kept.
    pub storage_configs: Vec<PodSnapshotStorageConfig>,
    /// Which pods are snapshotted.
    pub policies: Vec<PodSnapshotPolicy>,
    /// Pods that are to be snapshotted now.
    pub triggers: Vec<PodSnapshotManualTrigger>,
    /// Pods.
    pub pods: Vec<Pod>,
}

/// More files in a directory, or more bytes in all of them, are none of ours.
const MAX_FILES: usize = 10_000;
const MAX_TOTAL_LEN: usize = 64 << 20;

impl Resources {
    /// Reads the files `*.yaml` and `*.yml` of a directory, in the order of their names, or one file, which may be a pipe.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut reader = Reader::default();
        if !stat(path)?.is_dir() {
            reader.read_file(path)?;
            return Ok(reader.read);
        }
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(path).map_err(|e| cannot_be_read(path, &e))? {
            let file = entry.map_err(|e| cannot_be_read(path, &e))?.path();
            if file.extension().is_some_and(|e| e == "yaml" || e == "yml") {
                files.push(file);
            }
            if files.len() > MAX_FILES {
                let problem = format!("there are more than {MAX_FILES} files of YAML in it");
                return Err(Error::of_file(path, problem));
            }
        }
        files.sort();
        for file in &files {
            // To open a FIFO is to wait for somebody who writes into it.
            if !stat(file)?.is_file() {
                return Err(Error::of_file(file, "it is no regular file"));
            }
            reader.read_file(file)?;
            if reader.len > MAX_TOTAL_LEN {
                return Err(Error::of_file(
                    path,
                    "its files of YAML are longer than 64 MiB together",
                ));
            }
        }
        Ok(reader.read)
    }

    /// Reads the text of a file, which may hold several documents, or lists of resources as `kubectl get` prints them. Resources of other
    /// kinds are an error, and so is a file without any document.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Error> {
        let mut reader = Reader::default();
        reader.parse(file, text)?;
        Ok(reader.read)
    }

    /// The policy for a pod: of its namespace, with a selector that matches its labels; of several, the first by name.
    pub fn policy_for(&self, pod: &Pod) -> Option<&PodSnapshotPolicy> {
        let of_pod = self.policies.iter().filter(|policy| {
            policy.metadata.namespace == pod.metadata.namespace
                && policy.selector.matches(&pod.metadata.labels)
        });
        of_pod.min_by(|a, b| a.metadata.name.cmp(&b.metadata.name))
    }

    /// Where a policy's snapshots are kept.
    pub fn storage_of(
        &self,
        policy: &PodSnapshotPolicy,
    ) -> Result<&PodSnapshotStorageConfig, Error> {
        let mut configs = self.storage_configs.iter();
        let found = configs.find(|config| config.metadata.name == policy.storage_config);
        found.ok_or_else(|| {
            let problem = format!(
                "there is no PodSnapshotStorageConfig {:?}",
                policy.storage_config
            );
            Error::new(
                &policy.file,
                policy.storage_config_line,
                "spec.storageConfigName",
                problem,
            )
        })
    }
}

fn stat(path: &Path) -> Result<fs::Metadata, Error> {
    fs::metadata(path).map_err(|e| cannot_be_read(path, &e))
}

fn cannot_be_read(path: &Path, e: &io::Error) -> Error {
    Error::of_file(path, format!("it cannot be read: {e}"))
}

/// The kinds of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    PodSnapshotStorageConfig,
    PodSnapshotPolicy,
    PodSnapshotManualTrigger,
    Pod,
}

const KINDS: [(&str, Kind); 4] = [
    ("PodSnapshotStorageConfig", Kind::PodSnapshotStorageConfig),
    ("PodSnapshotPolicy", Kind::PodSnapshotPolicy),
    ("PodSnapshotManualTrigger", Kind::PodSnapshotManualTrigger),
    ("Pod", Kind::Pod),
];

/// Reads one file after another.
#[derive(Debug, Default)]
struct Reader {
    read: Resources,
    /// Where each name was given first.
    names: HashMap<(Kind, String), String>,
    /// Bytes read.
    len: usize,
}

impl Reader {
    fn read_file(&mut self, file: &Path) -> Result<(), Error> {
        let mut text = String::new();
        File::open(file)
            .and_then(|opened| {
                let mut bounded = opened.take(yaml::MAX_FILE_LEN as u64 + 1);
                bounded.read_to_string(&mut text)
            })
            .map_err(|e| cannot_be_read(file, &e))?;
        self.len += text.len();
        self.parse(file, &text)
    }

    fn parse(&mut self, file: &Path, text: &str) -> Result<(), Error> {
        for document in yaml::parse(file, text)? {
            let root = Field::root(file, &document);
            let mut fields = root.map()?;
            let version = fields.require("apiVersion")?;
            let kind = fields.require("kind")?;
            if kind.text()? != "List" {
                self.resource(&root)?;
                continue;
            }
            expect_version(&version, &["v1".to_owned()])?;
            fields.pass_over(&["metadata"]);
            let items = fields.require("items")?;
            fields.end()?;
            for item in items.list()? {
                self.resource(&item)?;
            }
        }
        Ok(())
    }

    fn resource(&mut self, root: &Field<'_>) -> Result<(), Error> {
        let mut fields = root.map()?;
        let version = fields.require("apiVersion")?;
        let kind = fields.require("kind")?.one_of(&KINDS)?;
        let expected = match kind {
            Kind::Pod => vec!["v1".to_owned()],
            _ => ["v1", "v1alpha1"]
                .map(|version| format!("{API_GROUP}/{version}"))
                .to_vec(),
        };
        expect_version(&version, &expected)?;
        let named = fields.require("metadata")?;
        let metadata = Metadata::read(&named)?;
        let spec = fields.require("spec")?;
        // What the cluster says about it.
        fields.pass_over(&["status"]);
        fields.end()?;
        self.claim(kind, &metadata, &named.map()?.require("name")?)?;
        let read = &mut self.read;
        match kind {
            Kind::PodSnapshotStorageConfig => {
                let config = PodSnapshotStorageConfig::read(metadata, &spec)?;
                read.storage_configs.push(config);
            }
            Kind::PodSnapshotPolicy => {
                let policy = PodSnapshotPolicy::read(metadata, &spec)?;
                read.policies.push(policy);
            }
            Kind::PodSnapshotManualTrigger => {
                let trigger = PodSnapshotManualTrigger::read(metadata, &spec)?;
                read.triggers.push(trigger);
            }
            Kind::Pod => read.pods.push(Pod::read(metadata, &spec)?),
        }
        Ok(())
    }

    /// Two resources of one kind and name are an error.
    fn claim(&mut self, kind: Kind, metadata: &Metadata, at: &Field<'_>) -> Result<(), Error> {
        let name = match kind {
            // They belong to no namespace.
            Kind::PodSnapshotStorageConfig => metadata.name.clone(),
            _ => metadata.full_name(),
        };
        match self.names.entry((kind, name)) {
            Entry::Occupied(taken) => {
                let ((kind, name), first) = (taken.key(), taken.get());
                Err(at.error(format!("the {kind:?} {name} is in {first} already")))
            }
            Entry::Vacant(free) => {
                free.insert(format!("{}:{}", at.file().display(), at.line()));
                Ok(())
            }
        }
    }
}

fn expect_version(version: &Field<'_>, expected: &[String]) -> Result<(), Error> {
    let found = version.text()?;
    if expected.iter().any(|version| version == found) {
        return Ok(());
    }
    let expected = expected.join(" or ");
    Err(version.error(format!("{} is not {expected}", quoted(found))))
}
