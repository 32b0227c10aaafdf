//! Credit: how many payloads one side may send before the other has made room.
//!
//! Each side of a connection starts with [`PAYLOAD_CREDIT`] payloads that it may send. A frame with a payload,
//! request or answer, spends one. The receiver gives it back
//! - for a request's payload: when the handler is done with the request (so one peer's requests hold at most
//!   `PAYLOAD_CREDIT` of our buffers);
//! - for an answer's payload: when the asker has taken the answer (who asks bounds what it asks for).
//!
//! What was given back travels in the credit field of the next frame, whatever its kind; when the other side has
//! spent more than half and no frame is due, a keepalive carries it at once.
//!
//! Invariant of [`ReceiveWindow`]: `open + held + returned == PAYLOAD_CREDIT`.

use crate::format::Malformed;
use crate::limits::PAYLOAD_CREDIT;

/// What we may still send.
#[derive(Debug)]
pub struct SendCredit {
    available: u32,
}

impl Default for SendCredit {
    fn default() -> Self {
        Self { available: PAYLOAD_CREDIT }
    }
}

impl SendCredit {
    pub fn available(&self) -> u32 {
        self.available
    }

    /// Takes one, if there is one.
    pub fn spend(&mut self) -> bool {
        match self.available.checked_sub(1) {
            Some(left) => {
                self.available = left;
                true
            }
            None => false,
        }
    }

    /// The other side gave `count` back. More than was ever spent is a lie.
    pub fn grant(&mut self, count: u32) -> Result<(), Malformed> {
        let sum = self.available.checked_add(count).filter(|sum| *sum <= PAYLOAD_CREDIT);
        self.available = sum.ok_or(Malformed::new("more credit than was spent"))?;
        Ok(())
    }
}

/// What the other side may still send, what we hold of it, and what it will be told with our next frame.
#[derive(Debug)]
pub struct ReceiveWindow {
    open: u32,
    held: u32,
    returned: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { open: PAYLOAD_CREDIT, held: 0, returned: 0 }
    }
}

impl ReceiveWindow {
    /// A header announces a payload.
    pub fn arrive(&mut self) -> Result<(), Malformed> {
        self.open = self.open.checked_sub(1).ok_or(Malformed::new("payload without credit"))?;
        self.held += 1;
        Ok(())
    }

    /// A payload that had arrived was taken, refused or thrown away.
    pub fn give_back(&mut self) {
        assert!(self.held > 0, "credit given back twice");
        self.held -= 1;
        self.returned += 1;
    }

    /// The credit field of the frame that is about to be sent.
    pub fn take_returned(&mut self) -> u32 {
        let returned = std::mem::take(&mut self.returned);
        self.open += returned;
        returned
    }

    /// True when what was given back should not wait for the next frame that happens to be sent.
    pub fn is_urgent(&self) -> bool {
        self.returned > 0 && self.open <= PAYLOAD_CREDIT / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn credit_runs_out_and_comes_back() {
        let mut credit = SendCredit::default();
        for _ in 0..PAYLOAD_CREDIT {
            assert!(credit.spend());
        }
        assert!(!credit.spend());
        credit.grant(2).unwrap();
        assert!(credit.spend() && credit.spend() && !credit.spend());
    }

    #[test]
    fn credit_that_was_never_spent_is_refused() {
        let mut credit = SendCredit::default();
        assert!(credit.grant(1).is_err());
        assert!(credit.spend());
        assert!(credit.grant(u32::MAX).is_err());
        assert!(credit.grant(1).is_ok());
    }

    #[test]
    fn a_payload_beyond_the_window_is_refused() {
        let mut window = ReceiveWindow::default();
        for _ in 0..PAYLOAD_CREDIT {
            window.arrive().unwrap();
        }
        assert!(window.arrive().is_err());
        window.give_back();
        assert!(window.arrive().is_err(), "given back, but not told yet");
        assert!(window.is_urgent());
        assert_eq!(window.take_returned(), 1);
        assert!(!window.is_urgent());
        window.arrive().unwrap();
    }

    proptest! {
        /// Whatever the two sides do and in whatever order frames cross, neither ever breaks the other's rules and
        /// no credit is lost.
        #[test]
        fn both_ends_agree_for_ever(steps in proptest::collection::vec(0u8..4, 0..400)) {
            let mut sender = SendCredit::default();
            let mut receiver = ReceiveWindow::default();
            let (mut payloads_on_the_way, mut grants_on_the_way) = (0u32, 0u32);
            for step in steps {
                match step {
                    0 => payloads_on_the_way += u32::from(sender.spend()),
                    1 if payloads_on_the_way > 0 => {
                        receiver.arrive().unwrap();
                        payloads_on_the_way -= 1;
                    }
                    2 if receiver.held > 0 => receiver.give_back(),
                    3 => {
                        sender.grant(std::mem::take(&mut grants_on_the_way)).unwrap();
                        grants_on_the_way = receiver.take_returned();
                    }
                    _ => {}
                }
                prop_assert_eq!(receiver.open + receiver.held + receiver.returned, PAYLOAD_CREDIT);
                prop_assert_eq!(sender.available + payloads_on_the_way + grants_on_the_way, receiver.open);
            }
        }
    }
}
