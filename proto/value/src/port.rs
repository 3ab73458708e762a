/// A port as flags and image configs write it: `80` or `80/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortText<'a> {
    /// 1 to 65535.
    pub number: u16,
    /// Text after the `/`, which each use restricts to those that it knows.
    pub protocol: Option<&'a str>,
}

impl<'a> PortText<'a> {
    /// Parses `N` or `N/PROTOCOL`. `None` if the number is not one from 1 to 65535, written in digits only.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (number, protocol) = match text.split_once('/') {
            Some((number, protocol)) => (number, Some(protocol)),
            None => (text, None),
        };
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let number = number.parse().ok().filter(|number| *number > 0)?;
        Some(Self { number, protocol })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_and_perhaps_a_protocol() {
        let parsed = |text| PortText::parse(text).map(|port| (port.number, port.protocol));
        assert_eq!(parsed("80"), Some((80, None)));
        assert_eq!(parsed("65535/tcp"), Some((65535, Some("tcp"))));
        assert_eq!(parsed("53/udp"), Some((53, Some("udp"))));
        assert_eq!(parsed("80/"), Some((80, Some(""))));
        for text in ["", "0", "65536", "+80", "-1", "http", "80:80", " 80", "/tcp"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
