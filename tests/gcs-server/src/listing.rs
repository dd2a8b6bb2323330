//! One page of a listing, for both APIs.

use std::collections::BTreeSet;

use crate::object::Object;

/// What is asked for.
#[derive(Debug, Default)]
pub(crate) struct Ask<'a> {
    pub prefix: &'a str,
    pub delimiter: &'a str,
    /// First name, inclusive.
    pub start: &'a str,
    /// Last name, exclusive.
    pub end: Option<&'a str>,
    /// The name or common prefix that the page before ended with.
    pub after: Option<&'a str>,
    pub most: usize,
    /// With a delimiter, also objects that are exactly a common prefix.
    pub include_trailing_delimiter: bool,
}

/// What is answered.
#[derive(Debug, Default)]
pub(crate) struct Page<'a> {
    pub objects: Vec<&'a Object>,
    pub prefixes: BTreeSet<String>,
    /// Where the next page goes on, if there is one.
    pub next: Option<String>,
}

/// Lists objects and `folders` (of a hierarchical bucket, where these are wanted as prefixes).
pub(crate) fn page<'a>(
    objects: impl Iterator<Item = &'a Object>,
    folders: impl Iterator<Item = &'a str>,
    ask: &Ask<'_>,
) -> Page<'a> {
    // Names in order, folders among objects.
    let mut names: Vec<(&str, Option<&Object>)> =
        objects.map(|o| (o.name.as_str(), Some(o))).collect();
    names.extend(folders.map(|f| (f, None)));
    names.sort_by_key(|(name, object)| (*name, object.is_none()));

    let mut page = Page::default();
    let mut last = String::new();
    for (name, object) in names {
        let Some(rest) = name.strip_prefix(ask.prefix) else {
            continue;
        };
        if name < ask.start || ask.end.is_some_and(|end| name >= end) {
            continue;
        }
        let common = match ask.delimiter {
            "" => None,
            delimiter => rest
                .find(delimiter)
                .map(|at| &name[..ask.prefix.len() + at + delimiter.len()]),
        };
        // A folder is a prefix or nothing.
        if object.is_none() && common.is_none() {
            continue;
        }
        let key = common.unwrap_or(name);
        let past = |after: &str| key > after && !(common.is_none() && name <= after);
        if ask.after.is_some_and(|after| !past(after)) {
            continue;
        }
        let known = common.is_some_and(|c| page.prefixes.contains(c));
        if !known {
            if page.objects.len() + page.prefixes.len() >= ask.most {
                page.next = Some(last);
                break;
            }
            last = key.to_owned();
        }
        match (common, object) {
            (Some(common), object) => {
                page.prefixes.insert(common.to_owned());
                if ask.include_trailing_delimiter
                    && common == name
                    && let Some(object) = object
                {
                    page.objects.push(object);
                }
            }
            (None, Some(object)) => page.objects.push(object),
            (None, None) => {}
        }
    }
    page
}
