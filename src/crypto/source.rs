//! Where a connection comes from, as far as one machine or household is told from another.

use std::net::IpAddr;

/// An IPv4 address, or an IPv6 /64: what one household or one machine is given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    V4([u8; 4]),
    V6Network([u8; 8]),
}

impl Source {
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6Network([a, b, c, d, e, f, g, h])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn a_household_is_one_source() {
        let one = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6));
        let two = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 9, 9, 9, 9));
        assert_eq!(Source::of(one), Source::of(two));
        let address = Ipv4Addr::new(10, 0, 0, 1);
        assert_eq!(Source::of(IpAddr::V6(address.to_ipv6_mapped())), Source::of(IpAddr::V4(address)));
    }
}
