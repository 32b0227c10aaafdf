//! What an argument means: a name, a prefix, a content id, a link, a ticket.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use zeroize::Zeroizing;

use super::exit::{Exit, Failure};
use crate::format::id::{CONTENT_ID_PREFIX, TextError};
use crate::format::link::{LINK_PREFIX, Link};
use crate::format::name::{BUCKET_DEFAULT, Name};
use crate::format::ticket::Ticket;
use crate::format::{Address, ContentId};
use crate::limits::SECRET_BYTES_MAX;
use crate::node::control::{SecretText, Target};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Name(Name),
    Content(Address),
    Link(Link),
}

impl Wanted {
    /// Without a slash, what begins like a content id or a link is one: `main/gc1…` is the way to such a name.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        if text == "-" || text.starts_with('@') {
            let secret = read_secret(text, "link")?;
            return parse_text("link", &secret).map(Self::Link);
        }
        if text.contains('/') {
            return parse_name(text).map(Self::Name);
        }
        if text.starts_with(LINK_PREFIX) {
            return parse_text("link", text).map(Self::Link);
        }
        if text.starts_with(CONTENT_ID_PREFIX) {
            let id: ContentId = text.parse().map_err(|error| {
                Failure::usage(format!("the content id {error}; a file called so is {BUCKET_DEFAULT}/{text}"))
            })?;
            return Ok(Self::Content(id.0));
        }
        parse_name(text).map(Self::Name)
    }

    pub fn request(&self) -> Target {
        match self {
            Self::Name(name) => Target::Name { bucket: name.bucket().to_owned(), key: name.key().to_owned() },
            Self::Content(address) => Target::Content { address: *address },
            Self::Link(link) => Target::Link { text: SecretText::new(link.to_string()) },
        }
    }

    /// The file name that `get` gives it when told none.
    pub fn file_name(&self) -> Result<String, Failure> {
        match self {
            Self::Name(name) => {
                let last = name.key().rsplit('/').next().unwrap_or_default();
                if matches!(last, "" | "." | "..") {
                    return Err(Failure::usage(format!("{name} does not end in a file name; give -o PATH")));
                }
                Ok(last.to_owned())
            }
            Self::Content(address) => Ok(ContentId(*address).to_string()),
            Self::Link(link) => Ok(link.content_id().to_string()),
        }
    }
}

/// How messages call it; of a link the content id, never the link.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Content(address) => write!(f, "{}", ContentId(*address)),
            Self::Link(link) => write!(f, "link to {}", link.content_id()),
        }
    }
}

pub fn parse_name(text: &str) -> Result<Name, Failure> {
    Name::parse(text).map_err(|error| Failure::usage(error.to_string()))
}

/// A bucket and the beginning of keys: `bucket/`, `bucket/prefix`, or `prefix` in `main`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    pub bucket: String,
    pub key: String,
}

impl Prefix {
    pub fn parse(text: &str) -> Result<Self, Failure> {
        if let Some(bucket) = text.strip_suffix('/').filter(|bucket| !bucket.contains('/')) {
            crate::format::name::check_bucket(bucket).map_err(|error| Failure::usage(error.to_string()))?;
            return Ok(Self { bucket: bucket.to_owned(), key: String::new() });
        }
        let name = parse_name(text)?;
        Ok(Self { bucket: name.bucket().to_owned(), key: name.key().to_owned() })
    }

    /// The same for a tree to be read: a link and a content id name one file.
    pub fn parse_tree(text: &str) -> Result<Self, Failure> {
        let is_secret = text == "-" || text.starts_with('@');
        let is_id = !text.contains('/') && (text.starts_with(LINK_PREFIX) || text.starts_with(CONTENT_ID_PREFIX));
        if is_secret || is_id {
            return Err(Failure::usage("a link or a content id is of one file, not of a tree: leave -r out"));
        }
        Self::parse(text)
    }

    /// The path of `key` below this prefix, when it is there: `a/b` is below `a` and `a/`, `ab` is not. The key itself
    /// is no part of its own tree.
    pub fn relative<'a>(&self, key: &'a str) -> Option<&'a str> {
        let rest = key.strip_prefix(self.key.as_str())?;
        if self.key.is_empty() || self.key.ends_with('/') { Some(rest) } else { rest.strip_prefix('/') }
            .filter(|rest| !rest.is_empty())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket, self.key)
    }
}

/// A ticket as given: the text itself, `-` for stdin, `@FILE` for a file.
pub fn parse_ticket(text: &str) -> Result<Ticket, Failure> {
    let secret = read_secret(text, "ticket")?;
    parse_text("ticket", &secret)
}

fn parse_text<T: FromStr<Err = TextError>>(what: &str, text: &str) -> Result<T, Failure> {
    let way_out = |error: &TextError| match error {
        TextError::Version { .. } | TextError::Checksum => "",
        _ => "; copy it again, whole",
    };
    text.trim().parse().map_err(|error| Failure::new(Exit::Key, format!("the {what} {error}{}", way_out(&error))))
}

fn read_secret(text: &str, what: &str) -> Result<Zeroizing<String>, Failure> {
    let mut secret = Zeroizing::new(String::new());
    let (source, result) = if text == "-" {
        ("stdin".to_owned(), std::io::stdin().lock().take(SECRET_BYTES_MAX).read_to_string(&mut secret))
    } else if let Some(path) = text.strip_prefix('@') {
        let read = |secret: &mut String| std::fs::File::open(path)?.take(SECRET_BYTES_MAX).read_to_string(secret);
        (path.to_owned(), read(&mut secret))
    } else {
        return Ok(Zeroizing::new(text.to_owned()));
    };
    match result {
        Ok(0) => Err(Failure::usage(format!("there is no {what} in {source}: it is empty"))),
        Ok(_) => Ok(secret),
        Err(error) => Err(Failure::other(format!("the {what} cannot be read from {source}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(bucket: &str, key: &str) -> Prefix {
        Prefix { bucket: bucket.to_owned(), key: key.to_owned() }
    }

    #[test]
    fn a_name_without_a_slash_is_in_main() {
        let Ok(Wanted::Name(name)) = Wanted::parse("film.mkv") else { panic!("not a name") };
        assert_eq!((name.bucket(), name.key()), ("main", "film.mkv"));
        let Ok(Wanted::Name(name)) = Wanted::parse("b/gl1x/y") else { panic!("not a name") };
        assert_eq!((name.bucket(), name.key()), ("b", "gl1x/y"));
    }

    #[test]
    fn damaged_links_and_content_ids_are_not_taken_for_names() {
        assert_eq!(Wanted::parse("gl1abc").unwrap_err().code, Exit::Key.code());
        assert_eq!(Wanted::parse("gc1abc").unwrap_err().code, Exit::Usage.code());
    }

    #[test]
    fn a_content_id_is_its_own_text_form() {
        let text = ContentId(Address([7; 32])).to_string();
        assert_eq!(Wanted::parse(&text), Ok(Wanted::Content(Address([7; 32]))));
    }

    #[test]
    fn prefixes_end_at_a_slash() {
        assert_eq!(Prefix::parse("backup/"), Ok(prefix("backup", "")));
        assert_eq!(Prefix::parse("backup/a/b"), Ok(prefix("backup", "a/b")));
        assert_eq!(Prefix::parse("photos"), Ok(prefix("main", "photos")));
        assert!(Prefix::parse("/").is_err());
        assert_eq!(prefix("m", "a").relative("a/b"), Some("b"));
        assert_eq!(prefix("m", "a/").relative("a/b"), Some("b"));
        assert_eq!(prefix("m", "a").relative("ab"), None);
        assert_eq!(prefix("m", "a").relative("a"), None);
        assert_eq!(prefix("m", "").relative("a/b"), Some("a/b"));
    }
}
