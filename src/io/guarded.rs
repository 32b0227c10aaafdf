//! Memory that ends where nothing is mapped, for tests: whoever reads a byte too many is killed by the kernel.
#![allow(unsafe_code)] // takes the access to a page away

use memmap2::MmapMut;

/// Bytes right before a page that nobody may touch.
pub struct Guarded {
    map: MmapMut,
    start: usize,
    len_bytes: usize,
}

impl Guarded {
    pub fn new(bytes: &[u8]) -> Self {
        let page = page_bytes();
        let room = bytes.len().next_multiple_of(page);
        let mut map = MmapMut::map_anon(room + page).expect("memory");
        let start = room - bytes.len();
        map[start..room].copy_from_slice(bytes);
        // SAFETY: the last page of a mapping of our own, to which nothing refers and which is never handed out.
        let outcome = unsafe { libc::mprotect(map.as_mut_ptr().add(room).cast(), page, libc::PROT_NONE) };
        assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
        Self { map, start, len_bytes: bytes.len() }
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len_bytes]
    }
}

fn page_bytes() -> usize {
    // SAFETY: takes a number only.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("a page has a length")
}
