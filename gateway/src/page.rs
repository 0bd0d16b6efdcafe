//! Pages of lists that are in the order of their names: what `page_size` and `page_token` of a request mean.

use novum_sandbox::FunctionName;

use crate::error::Error;

/// Where a request does not say it.
const DEFAULT_SIZE: u32 = 100;
const MAX_SIZE: u32 = 1000;

/// A piece of a list.
pub struct Page<T> {
    /// In the order of their names.
    pub items: Vec<T>,
    /// The token of the next page; empty on the last one.
    pub next: String,
}

/// At most `size` (0: 100) of `all`, which is in the order of its names, that come after the name in `token`.
///
/// # Errors
/// Names `page_size` or `page_token`.
pub fn page<'a, T>(
    all: impl Iterator<Item = (&'a FunctionName, T)>,
    size: u32,
    token: &str,
) -> Result<Page<T>, Error> {
    let size = match size {
        0 => DEFAULT_SIZE,
        n if n > MAX_SIZE => {
            return Err(Error::field("page_size", format!("must be at most {MAX_SIZE}, not {n}")));
        }
        n => n,
    } as usize;
    let after = if token.is_empty() { None } else { Some(token.parse::<FunctionName>()) };
    let after = after
        .transpose()
        .map_err(|_| Error::field("page_token", "must be the `next_page_token` of an earlier reply"))?;
    let mut rest = all.filter(|(name, _)| after.as_ref().is_none_or(|after| *name > after));
    let (mut items, mut last) = (Vec::new(), None);
    for (name, item) in rest.by_ref().take(size) {
        items.push(item);
        last = Some(name);
    }
    let more = rest.next().and(last);
    Ok(Page { items, next: more.map(ToString::to_string).unwrap_or_default() })
}
