//! DNS messages (RFC 1035), as far as they are needed: the question, and the addresses of an answer.

use std::net::Ipv4Addr;

const HEADER: usize = 12;
const MAX_NAME: usize = 255;
/// Maximum number of records that are read of one answer; a legitimate answer has fewer.
const MAX_RECORDS: usize = 256;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;

const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const NO_SUCH_NAME: u8 = 3;
const SERVER_FAILURE: u8 = 2;

/// Query with one question.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DnsQuery {
    /// Name in lower case, without a trailing dot; bytes that are not printable are shown as `\DDD`.
    pub(super) name: String,
    kind: u16,
    class: u16,
    /// Offset of the end of the question.
    end: usize,
}

/// Address in an answer, and its time to live in seconds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AddressRecord {
    pub(super) address: Ipv4Addr,
    pub(super) ttl: u32,
}

impl DnsQuery {
    /// Parses a query. A message that is no plain query yields `None` and gets no answer.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let header = message.get(..HEADER)?;
        if header[2] & (RESPONSE | OPCODE) != 0 || number(header, 4)? != 1 {
            return None;
        }
        let (mut name, mut at) = (String::new(), HEADER);
        loop {
            let length = usize::from(*message.get(at)?);
            // A question has nothing that compression could point to.
            if length > 63 || at - HEADER + length > MAX_NAME {
                return None;
            }
            at += 1;
            if length == 0 {
                break;
            }
            if !name.is_empty() {
                name.push('.');
            }
            for byte in message.get(at..at + length)? {
                match byte {
                    // A dot within a label must not look like a separator.
                    0x21..=0x7e if !matches!(byte, b'.' | b'\\') => {
                        name.push(char::from(byte.to_ascii_lowercase()));
                    }
                    _ => name.push_str(&format!("\\{byte:03}")),
                }
            }
            at += length;
        }
        Some(Self { name, kind: number(message, at)?, class: number(message, at + 2)?, end: at + 4 })
    }

    pub(super) fn is_for_ipv6(&self) -> bool {
        self.kind == TYPE_AAAA && self.class == CLASS_IN
    }

    /// Returns the answer that the name does not exist.
    pub(super) fn no_such_name(&self, query: &[u8]) -> Vec<u8> {
        self.reply(query, NO_SUCH_NAME)
    }

    /// Returns the answer that the name has no records of this type.
    pub(super) fn empty_answer(&self, query: &[u8]) -> Vec<u8> {
        self.reply(query, 0)
    }

    pub(super) fn server_failure(&self, query: &[u8]) -> Vec<u8> {
        self.reply(query, SERVER_FAILURE)
    }

    fn reply(&self, query: &[u8], code: u8) -> Vec<u8> {
        let mut reply = query[..self.end].to_vec();
        reply[2] = RESPONSE | (query[2] & RECURSION_DESIRED);
        reply[3] = RECURSION_AVAILABLE | code;
        reply[4..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        reply
    }

    /// Reports whether `answer` is a response to the question of `query`.
    pub(super) fn is_answered_by(&self, query: &[u8], answer: &[u8]) -> bool {
        let same = |range: std::ops::Range<usize>| {
            let pair = query.get(range.clone()).zip(answer.get(range));
            pair.is_some_and(|(query, answer)| query.eq_ignore_ascii_case(answer))
        };
        same(0..2) && answer.get(2).is_some_and(|flags| flags & RESPONSE != 0) && same(HEADER..self.end)
    }

    /// Returns the addresses in an answer to this question.
    pub(super) fn addresses(&self, answer: &[u8]) -> Vec<AddressRecord> {
        let mut found = Vec::new();
        let mut at = self.end;
        for _ in 0..number(answer, 6).map_or(0, usize::from).min(MAX_RECORDS) {
            let Some((record, next)) = record(answer, at) else { break };
            found.extend(record);
            at = next;
        }
        found
    }
}

/// Parses the record at an offset. Returns it if it is an address, and the offset of the next record.
fn record(message: &[u8], at: usize) -> Option<(Option<AddressRecord>, usize)> {
    let mut at = at;
    loop {
        let length = *message.get(at)?;
        at += match length {
            0 => 1,
            0xc0.. => 2,
            1..64 => 1 + usize::from(length),
            _ => return None,
        };
        if length == 0 || length >= 0xc0 {
            break;
        }
    }
    let (kind, class, length) = (number(message, at)?, number(message, at + 2)?, number(message, at + 8)?);
    let ttl = (u32::from(number(message, at + 4)?) << 16) | u32::from(number(message, at + 6)?);
    let (begin, end) = (at + 10, at + 10 + usize::from(length));
    let content = message.get(begin..end)?;
    let address = <[u8; 4]>::try_from(content).ok().filter(|_| (kind, class) == (TYPE_A, CLASS_IN));
    Some((address.map(|address| AddressRecord { address: address.into(), ttl }), end))
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend([kind.to_be_bytes(), CLASS_IN.to_be_bytes()].concat());
        message
    }

    fn with_answers(query: &[u8], records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= RESPONSE;
        answer[7] = u8::try_from(records.len()).unwrap();
        for (kind, content) in records {
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1, 0, 0, 1, 0x2c]);
            answer.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
            answer.extend(*content);
        }
        answer
    }

    #[test]
    fn a_question_is_read_in_lower_case_and_what_could_deceive_is_marked() {
        let parsed = DnsQuery::parse(&query("PyPI.org", TYPE_A)).unwrap();
        assert_eq!(parsed.name, "pypi.org");
        assert!(!parsed.is_for_ipv6() && DnsQuery::parse(&query("a", TYPE_AAAA)).unwrap().is_for_ipv6());
        let mut dotted = query("xx.org", TYPE_A);
        dotted[14] = b'.';
        assert_eq!(DnsQuery::parse(&dotted).unwrap().name, "x\\046.org");
        let mut response = query("a", TYPE_A);
        response[2] |= RESPONSE;
        assert_eq!(DnsQuery::parse(&response), None);
        let mut two = query("a", TYPE_A);
        two[5] = 2;
        assert_eq!(DnsQuery::parse(&two), None);
    }

    #[test]
    fn addresses_of_an_answer_are_found_behind_other_records() {
        let message = query("pypi.org", TYPE_A);
        let parsed = DnsQuery::parse(&message).unwrap();
        let answer =
            with_answers(&message, &[(5, b"\x01a\x00"), (TYPE_A, &[192, 0, 2, 7]), (TYPE_A, &[1, 2])]);
        assert!(parsed.is_answered_by(&message, &answer));
        let expected = AddressRecord { address: Ipv4Addr::new(192, 0, 2, 7), ttl: 300 };
        assert_eq!(parsed.addresses(&answer), [expected]);
        let mut other = answer.clone();
        other[0] ^= 1;
        assert!(!parsed.is_answered_by(&message, &other));
        assert!(!parsed.is_answered_by(&message, &message), "a query is no answer");
    }

    #[test]
    fn a_denial_has_the_question_and_nothing_else() {
        let message = query("evil.example", TYPE_A);
        let parsed = DnsQuery::parse(&message).unwrap();
        let denial = parsed.no_such_name(&message);
        assert_eq!((denial.len(), denial[3] & 0x0f), (message.len(), NO_SUCH_NAME));
        assert!(parsed.is_answered_by(&message, &denial) && parsed.addresses(&denial).is_empty());
        assert_eq!(parsed.empty_answer(&message)[3] & 0x0f, 0);
    }

    proptest! {
        #[test]
        fn no_bytes_are_read_past_their_end(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(parsed) = DnsQuery::parse(&bytes) {
                parsed.no_such_name(&bytes);
                parsed.addresses(&bytes);
            }
            let message = query("a.b", TYPE_A);
            let parsed = DnsQuery::parse(&message).unwrap();
            let mut answer = message.clone();
            answer[7] = 9;
            answer.append(&mut bytes);
            parsed.addresses(&answer);
        }
    }
}
