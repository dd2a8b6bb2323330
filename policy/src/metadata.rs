//! Names and labels, as all resources have them.

use std::collections::BTreeMap;

use crate::{Error, error::quoted, field::Field};

/// What the cluster adds, and what says nothing here.
const OF_THE_CLUSTER: [&str; 10] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "ownerReferences",
    "finalizers",
    "selfLink",
];

/// A resource's name, and what it is labelled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its namespace; `default` unless it says another.
    pub namespace: String,
    /// What selectors look at.
    pub labels: BTreeMap<String, String>,
    /// What programs look at.
    pub annotations: BTreeMap<String, String>,
}

impl Metadata {
    pub(crate) fn read(field: &Field<'_>) -> Result<Self, Error> {
        let mut fields = field.map()?;
        let name = fields.require("name")?;
        let metadata = Self {
            name: resource_name(&name)?,
            namespace: match fields.take("namespace") {
                Some(namespace) => resource_name(&namespace)?,
                None => "default".to_owned(),
            },
            labels: texts(fields.take("labels"))?,
            annotations: texts(fields.take("annotations"))?,
        };
        fields.pass_over(&OF_THE_CLUSTER);
        fields.end()?;
        Ok(metadata)
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Names become names of files and objects: what Kubernetes allows cannot lead elsewhere.
pub(crate) fn resource_name(field: &Field<'_>) -> Result<String, Error> {
    let name = field.text()?;
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = name.len() <= 253
        && name.starts_with(inner)
        && name.ends_with(inner)
        && name.chars().all(|c| inner(c) || c == '-' || c == '.');
    match good {
        true => Ok(name.to_owned()),
        false => Err(field.error(format!(
            "{} is no name: small letters, digits, - and . are allowed, a letter or digit at both ends",
            quoted(name)
        ))),
    }
}

pub(crate) fn texts(field: Option<Field<'_>>) -> Result<BTreeMap<String, String>, Error> {
    let Some(field) = field else {
        return Ok(BTreeMap::new());
    };
    let texts = field.texts()?.into_iter();
    texts
        .map(|(key, value)| Ok((key.to_owned(), value.text()?.to_owned())))
        .collect()
}
