//! How one value of the control protocol becomes bytes and back, and the two macros that write it for whole messages.
//!
//! | value | bytes |
//! | --- | --- |
//! | `u8 u16 u32 u64 i64` | little-endian |
//! | `bool` | one byte, 0 or 1; anything else is malformed |
//! | text, byte string | `u32` length, then the bytes; text must be UTF-8 |
//! | address, node id, network id | 32 bytes |
//! | optional | one byte 0, or one byte 1 and the value |
//! | list | `u32` count, then the values |
//! | pair | both values |
//! | structure | its fields in the order of their declaration |
//! | enumeration | one byte tag, then the fields of that variant |
//!
//! A decoder reserves no memory on the word of a count: a list grows as its values arrive, and a message is bounded
//! before it is read.

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::format::name::Metadata;
use crate::format::{Address, Malformed, NetworkId, NodeId, Reader, Writer};

pub(super) trait Field: Sized {
    fn write(&self, writer: &mut Writer);
    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed>;
}

macro_rules! integer_fields {
    ($($integer:ident)*) => {$(
        impl Field for $integer {
            fn write(&self, writer: &mut Writer) {
                writer.$integer(*self);
            }

            fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
                reader.$integer(what)
            }
        }
    )*};
}

integer_fields!(u8 u16 u32 u64);

impl Field for i64 {
    fn write(&self, writer: &mut Writer) {
        writer.bytes(&self.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        reader.u64(what).map(u64::cast_signed)
    }
}

impl Field for bool {
    fn write(&self, writer: &mut Writer) {
        writer.u8(u8::from(*self));
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        match reader.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::new(what)),
        }
    }
}

impl Field for String {
    fn write(&self, writer: &mut Writer) {
        writer.long_bytes(self.as_bytes());
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        let bytes = reader.long_bytes(what)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed::new(what))
    }
}

/// A byte string; a `Vec` of anything else is a list.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Field for Bytes {
    fn write(&self, writer: &mut Writer) {
        writer.long_bytes(&self.0);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        Ok(Self(reader.long_bytes(what)?.to_vec()))
    }
}

/// A link, a ticket, exported keys: text that no log may show.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SecretText(String);

impl SecretText {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl Field for SecretText {
    fn write(&self, writer: &mut Writer) {
        self.0.write(writer);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        String::read(reader, what).map(Self)
    }
}

/// As five values in the order of their declaration. Its own bounds are checked here, so that a node may seal what it got.
impl Field for Metadata {
    fn write(&self, writer: &mut Writer) {
        self.mtime_s.write(writer);
        self.mtime_ns.write(writer);
        self.mode.write(writer);
        self.symlink_target.clone().map(Bytes).write(writer);
        self.content_type.write(writer);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        let metadata = Self {
            mtime_s: Field::read(reader, what)?,
            mtime_ns: Field::read(reader, what)?,
            mode: Field::read(reader, what)?,
            symlink_target: Option::<Bytes>::read(reader, what)?.map(|bytes| bytes.0),
            content_type: Field::read(reader, what)?,
        };
        metadata.check()?;
        Ok(metadata)
    }
}

macro_rules! identifier_fields {
    ($($identifier:ident)*) => {$(
        impl Field for $identifier {
            fn write(&self, writer: &mut Writer) {
                writer.put(self);
            }

            fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
                reader.take::<$identifier>(what).copied()
            }
        }
    )*};
}

identifier_fields!(Address NodeId NetworkId);

impl<T: Field> Field for Option<T> {
    fn write(&self, writer: &mut Writer) {
        self.is_some().write(writer);
        if let Some(value) = self {
            value.write(writer);
        }
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        if bool::read(reader, what)? { T::read(reader, what).map(Some) } else { Ok(None) }
    }
}

impl<T: Field> Field for Vec<T> {
    fn write(&self, writer: &mut Writer) {
        assert!(u32::try_from(self.len()).is_ok(), "list too long for a 32-bit count");
        writer.u32(self.len() as u32);
        self.iter().for_each(|value| value.write(writer));
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        let count = reader.u32(what)?;
        (0..count).map(|_| T::read(reader, what)).collect()
    }
}

impl<A: Field, B: Field> Field for (A, B) {
    fn write(&self, writer: &mut Writer) {
        self.0.write(writer);
        self.1.write(writer);
    }

    fn read(reader: &mut Reader<'_>, what: &'static str) -> Result<Self, Malformed> {
        Ok((A::read(reader, what)?, B::read(reader, what)?))
    }
}

/// Declares a structure whose bytes are its fields in order.
macro_rules! structure {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
        }

        impl $crate::node::control::field::Field for $name {
            fn write(&self, writer: &mut $crate::format::Writer) {
                $($crate::node::control::field::Field::write(&self.$field, writer);)*
            }

            fn read(
                reader: &mut $crate::format::Reader<'_>,
                _what: &'static str,
            ) -> Result<Self, $crate::format::Malformed> {
                Ok(Self {
                    $($field: $crate::node::control::field::Field::read(
                        reader,
                        concat!(stringify!($name), ".", stringify!($field)),
                    )?,)*
                })
            }
        }
    };
}

/// Declares an enumeration whose variants carry a tag and, some, named fields.
macro_rules! tagged {
    (
        $(#[$doc:meta])*
        pub enum $name:ident {
            $($(#[$variant_doc:meta])* $tag:literal => $variant:ident $({
                $($(#[$field_doc:meta])* $field:ident: $kind:ty,)*
            })?,)*
        }
    ) => {
        $(#[$doc])*
        pub enum $name {
            $($(#[$variant_doc])* $variant $({ $($(#[$field_doc])* $field: $kind,)* })?,)*
        }

        impl $crate::node::control::field::Field for $name {
            fn write(&self, writer: &mut $crate::format::Writer) {
                match self {
                    $(Self::$variant { $($($field,)*)? } => {
                        writer.u8($tag);
                        $($($crate::node::control::field::Field::write($field, writer);)*)?
                    })*
                }
            }

            fn read(
                reader: &mut $crate::format::Reader<'_>,
                _what: &'static str,
            ) -> Result<Self, $crate::format::Malformed> {
                match reader.u8(concat!(stringify!($name), " tag"))? {
                    $($tag => Ok(Self::$variant {
                        $($($field: $crate::node::control::field::Field::read(
                            reader,
                            concat!(stringify!($name), "::", stringify!($variant), ".", stringify!($field)),
                        )?,)*)?
                    }),)*
                    _ => Err($crate::format::Malformed::new(concat!(stringify!($name), " tag"))),
                }
            }
        }
    };
}

pub(super) use {structure, tagged};
