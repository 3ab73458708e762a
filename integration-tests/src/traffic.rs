//! Steady traffic: two hundred requests a second for one host of the ingress, half of them on kept connections, while a
//! test changes the service.
//!
//! Each client sends requests at times that are fixed at the start, so that one late response does not reduce the
//! number of requests after it.

use std::io::{self, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::http::{Request, read_answer};
use crate::wait::seconds;

const CLIENTS: u32 = 8;
/// Time between two requests of one client.
const PAUSE: Duration = Duration::from_millis(40);
const LIMIT: Duration = seconds(30);
/// Maximum number of failures that are kept as text; the others are only counted.
const TOLD: usize = 50;

/// Results that the clients recorded.
#[derive(Debug, Default)]
pub struct Seen {
    pub answers: usize,
    pub failures: usize,
    /// Texts of the first failures.
    pub failed: Vec<String>,
    /// Longest time to a response, counted from the time at which its request was due.
    pub longest: Duration,
    /// Longest time between two successive good responses, whichever client got them.
    pub gap: Duration,
    last_good: Option<Instant>,
}

impl Seen {
    fn add(&mut self, due: Instant, answer: Result<(), String>) {
        // The time is taken under the lock, so that the times are in order.
        let now = Instant::now();
        self.answers += 1;
        self.longest = self.longest.max(now.saturating_duration_since(due));
        match answer {
            Ok(()) => {
                if let Some(last) = self.last_good.replace(now) {
                    self.gap = self.gap.max(now.saturating_duration_since(last));
                }
            }
            Err(why) => {
                self.failures += 1;
                if self.failed.len() < TOLD {
                    self.failed.push(why);
                }
            }
        }
    }
}

/// Requests `/` of a host while `work` runs. A response is good when it is 200 with one of these texts.
pub fn during(address: &str, host: &str, texts: &[&str], work: impl FnOnce()) -> Seen {
    let (seen, over) = (Mutex::default(), AtomicBool::new(false));
    let begin = Instant::now();
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let client = Client { address, host, texts, kept: number % 2 == 0 };
            let (seen, over) = (&seen, &over);
            scope.spawn(move || client.ask_on(begin + PAUSE * number / CLIENTS, over, seen));
        }
        // The drop guard ends the clients also when the work panics: the scope waits for its threads.
        let _over = Over(&over);
        work();
    });
    seen.into_inner()
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Client<'a> {
    address: &'a str,
    host: &'a str,
    texts: &'a [&'a str],
    kept: bool,
}

impl Client<'_> {
    fn ask_on(&self, mut due: Instant, over: &AtomicBool, seen: &Mutex<Seen>) {
        let mut connection = None;
        while !over.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let answer = match self.ask(&mut connection) {
                Ok((200, text)) if self.texts.contains(&text.as_str()) => Ok(()),
                Ok((status, text)) => Err(format!("{status} {text:?}")),
                Err(error) => Err(error.to_string()),
            };
            seen.lock().add(due, answer);
            // Overdue requests are skipped: a burst after a pause would be no steady traffic.
            due = (due + PAUSE).max(Instant::now());
        }
    }

    fn ask(&self, connection: &mut Option<BufReader<TcpStream>>) -> io::Result<(u16, String)> {
        if !self.kept {
            let answer = Request::new("GET", "/").host(self.host).try_send(self.address)?;
            return Ok((answer.status, answer.text()));
        }
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => self.connect()?,
        };
        stream.get_mut().write_all(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", self.host).as_bytes())?;
        let answer = read_answer(&mut stream, false)?;
        if !answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            *connection = Some(stream);
        }
        Ok((answer.status, answer.text()))
    }

    fn connect(&self) -> io::Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(BufReader::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;
    use std::net::TcpListener;

    use super::*;

    /// Answers each request with the next of these responses, and closes the connection at an empty one.
    fn scripted(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            let next = Mutex::new(answers.iter().cycle());
            thread::scope(|scope| {
                for stream in listener.incoming() {
                    let next = &next;
                    scope.spawn(move || answer_on(&stream.unwrap(), || next.lock().next().unwrap()));
                }
            });
        });
        address
    }

    fn answer_on(mut stream: &TcpStream, mut next: impl FnMut() -> &'static str) {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        while lines.by_ref().take_while(|line| !line.is_empty()).count() > 0 {
            let answer = next();
            if answer.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    #[test]
    fn good_answers_are_counted_at_two_hundred_a_second() {
        let address = scripted(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"]);
        let seen = during(&address, "a.test", &["ok"], || thread::sleep(seconds(1)));
        assert_eq!((seen.failures, seen.failed.len()), (0, 0), "{seen:?}");
        assert!((100..=210).contains(&seen.answers), "{seen:?}");
        assert!(seen.gap > Duration::ZERO && seen.gap < Duration::from_millis(500), "{seen:?}");
    }

    #[test]
    fn another_status_another_text_and_a_cut_connection_are_failures() {
        let address = scripted(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
            "",
        ]);
        let seen = during(&address, "a.test", &["ok"], || thread::sleep(Duration::from_millis(400)));
        assert!(seen.failures * 2 > seen.answers && seen.failures < seen.answers, "{seen:?}");
        for word in ["502", "\"no\"", "unexpected end of file"] {
            assert!(seen.failed.iter().any(|why| why.contains(word)), "{word} in {seen:?}");
        }
    }
}
