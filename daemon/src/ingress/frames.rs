//! Tracks the frame boundaries of a WebSocket (RFC 6455, section 5.2): only there may another frame be inserted.

/// Close frame from a server, with status 1001 (going away).
pub(super) const CLOSE_TO_CLIENT: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];
/// Close frame from a client, whose frames are masked; the mask is four zeros.
pub(super) const CLOSE_TO_INSTANCE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];

/// Maximum length of a frame header: two bytes, an extended length of eight, a mask of four.
const MAX_HEAD: usize = 14;

/// Tracks the frames of one direction of a connection.
#[derive(Default)]
pub(super) struct FrameTracker {
    head: [u8; MAX_HEAD],
    /// Number of header bytes that have been read.
    seen: usize,
    /// Number of payload bytes that are still to come.
    left: u64,
}

impl FrameTracker {
    pub(super) fn at_boundary(&self) -> bool {
        self.seen == 0 && self.left == 0
    }

    pub(super) fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let step = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= step as u64;
                bytes = &bytes[step..];
                continue;
            }
            self.head[self.seen] = bytes[0];
            self.seen += 1;
            bytes = &bytes[1..];
            if let Some(payload) = self.payload() {
                self.left = payload;
                self.seen = 0;
            }
        }
    }

    /// Returns the length of the payload, once the header is complete.
    fn payload(&self) -> Option<u64> {
        if self.seen < 2 {
            return None;
        }
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        let (extended, short) = match self.head[1] & 0x7f {
            126 => (2, 0),
            127 => (8, 0),
            short => (0, u64::from(short)),
        };
        if self.seen < 2 + extended + mask {
            return None;
        }
        let long = self.head[2..2 + extended].iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
        Some(short + long)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x82];
        match length {
            0..126 => bytes.push(mask | length as u8),
            126..65536 => {
                bytes.push(mask | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if masked {
            bytes.extend([1, 2, 3, 4]);
        }
        bytes.extend(std::iter::repeat_n(0xff, length));
        bytes
    }

    proptest! {
        #[test]
        fn a_boundary_is_where_a_frame_ends_however_the_bytes_come(
            lengths in prop::collection::vec(prop_oneof![0usize..200, 65500usize..65600], 1..5),
            masked: bool,
            piece in 1usize..70_000,
        ) {
            let (mut all, mut ends) = (Vec::new(), vec![0]);
            for length in lengths {
                all.extend(frame(length, masked));
                ends.push(all.len());
            }
            let mut frames = FrameTracker::default();
            let mut at = 0;
            for bytes in all.chunks(piece) {
                frames.follow(bytes);
                at += bytes.len();
                prop_assert_eq!(frames.at_boundary(), ends.contains(&at));
            }
        }
    }

    #[test]
    fn the_close_frames_are_whole_frames() {
        for close in [&CLOSE_TO_CLIENT[..], &CLOSE_TO_INSTANCE[..]] {
            let mut frames = FrameTracker::default();
            frames.follow(close);
            assert!(frames.at_boundary());
        }
    }
}
