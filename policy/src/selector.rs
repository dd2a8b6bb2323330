//! Which pods a policy is for, by their labels.

use std::collections::BTreeMap;

use crate::{Error, field::Field, metadata::texts};

/// A condition on labels. All parts must hold; one without parts holds for every pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// Labels that must be there, with these values.
    pub match_labels: BTreeMap<String, String>,
    /// More conditions.
    pub requirements: Vec<Requirement>,
}

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// The label has one of these values.
    In(String, Vec<String>),
    /// The label has none of these values, or is not there.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    DoesNotExist(String),
}

impl Selector {
    pub(crate) fn read(field: &Field<'_>) -> Result<Self, Error> {
        let mut fields = field.map()?;
        let match_labels = texts(fields.take("matchLabels"))?;
        let mut requirements = Vec::new();
        if let Some(expressions) = fields.take("matchExpressions") {
            for expression in expressions.list()? {
                requirements.push(Requirement::read(&expression)?);
            }
        }
        fields.end()?;
        Ok(Self {
            match_labels,
            requirements,
        })
    }

    /// Whether it holds for a pod with these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let mut wanted = self.match_labels.iter();
        wanted.all(|(key, value)| labels.get(key) == Some(value))
            && self.requirements.iter().all(|r| r.holds(labels))
    }
}

impl Requirement {
    fn read(field: &Field<'_>) -> Result<Self, Error> {
        type Make = fn(String, Vec<String>) -> Requirement;
        let operators: [(&str, (bool, Make)); 4] = [
            ("In", (true, Self::In)),
            ("NotIn", (true, Self::NotIn)),
            ("Exists", (false, |key, _| Self::Exists(key))),
            ("DoesNotExist", (false, |key, _| Self::DoesNotExist(key))),
        ];
        let mut fields = field.map()?;
        let key = fields.require("key")?.name()?.to_owned();
        let operator = fields.require("operator")?;
        let (wants_values, make) = operator.one_of(&operators)?;
        let mut values = Vec::new();
        if let Some(list) = fields.take("values") {
            for value in list.list()? {
                values.push(value.text()?.to_owned());
            }
        }
        match (wants_values, values.is_empty()) {
            (true, true) => return Err(operator.error("it needs values")),
            (false, false) => return Err(operator.error("it takes no values")),
            _ => {}
        }
        fields.end()?;
        Ok(make(key, values))
    }

    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}
