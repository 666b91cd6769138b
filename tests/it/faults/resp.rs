//! RESP, as far as tests speak it: a client that blocks, and where a value ends.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What a server answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Nil,
    /// A short text, such as `OK`.
    Simple(String),
    /// What was wrong, its code first.
    Error(String),
    /// A number.
    Int(i64),
    /// Bytes.
    Bulk(Vec<u8>),
    /// Several of these.
    Array(Vec<Value>),
}

impl Value {
    /// What it says as text; empty where it is none.
    pub fn text(&self) -> String {
        match self {
            Self::Nil | Self::Array(_) => String::new(),
            Self::Simple(text) | Self::Error(text) => text.clone(),
            Self::Int(number) => number.to_string(),
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        }
    }

    /// Its bytes; none where it has none.
    pub fn bytes(self) -> Vec<u8> {
        if let Self::Bulk(bytes) = self { bytes } else { Vec::new() }
    }

    /// Its parts; none where it has none.
    pub fn parts(self) -> Vec<Value> {
        if let Self::Array(parts) = self { parts } else { Vec::new() }
    }
}

/// A connection that is used by one command after the other.
pub struct Client(BufReader<TcpStream>);

impl Client {
    /// Connects; no command may take longer than this.
    pub fn connect(port: u16, patience: Duration) -> io::Result<Self> {
        let stream =
            TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends one command and waits for its answer.
    pub fn command<A: AsRef<[u8]>>(&mut self, words: &[A]) -> io::Result<Value> {
        let mut sent = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            sent.extend_from_slice(format!("${}\r\n", word.as_ref().len()).as_bytes());
            sent.extend_from_slice(word.as_ref());
            sent.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&sent)?;
        self.value()
    }

    fn value(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (kind, rest) = line.trim_end().split_at(1);
        let number =
            || rest.parse::<i64>().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        Ok(match kind {
            "+" => Value::Simple(rest.to_owned()),
            "-" => Value::Error(rest.to_owned()),
            ":" => Value::Int(number()?),
            "$" => match usize::try_from(number()?) {
                Err(_) => Value::Nil,
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    self.0.read_exact(&mut bytes)?;
                    bytes.truncate(length);
                    Value::Bulk(bytes)
                }
            },
            "*" => match number()? {
                ..0 => Value::Nil,
                parts => Value::Array((0..parts).map(|_| self.value()).collect::<Result<_, _>>()?),
            },
            _ => return Err(io::ErrorKind::InvalidData.into()),
        })
    }
}

/// How many bytes the first value has; nothing while it is not whole.
pub fn end_of_value(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut pending) = (0, 1_usize);
    while pending > 0 {
        let rest = bytes.get(at..)?;
        let line = rest.windows(2).position(|two| two == b"\r\n")?;
        let number = std::str::from_utf8(&rest[1..line]).ok().and_then(|text| text.parse().ok());
        at += line + 2;
        pending -= 1;
        // -1 says that there is nothing.
        let number: usize = number.unwrap_or_default();
        match rest[0] {
            b'$' | b'=' | b'!' if !rest.starts_with(b"$-") => at += number + 2,
            b'*' | b'>' | b'~' => pending += number,
            b'%' => pending += 2 * number,
            _ => {}
        }
    }
    (at <= bytes.len()).then_some(at)
}

/// The first word of an array, such as a command's name or a push's kind; in lower case.
pub fn first_word(value: &[u8]) -> String {
    let mut lines = value.split(|byte| *byte == b'\n');
    let is_array = lines.next().is_some_and(|line| matches!(line.first(), Some(b'*' | b'>')));
    let word = if is_array { lines.nth(1) } else { None };
    String::from_utf8_lossy(word.unwrap_or_default()).trim_end().to_ascii_lowercase()
}

#[test]
fn a_value_ends_where_its_last_part_does() {
    let push: &[u8] = b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$4\r\n\r\n\r\n\r\n";
    for cut in 0..push.len() {
        assert_eq!(end_of_value(&push[..cut]), None, "{cut}");
    }
    assert_eq!(end_of_value(&[push, b"+OK"].concat()), Some(push.len()));
    assert_eq!(first_word(push), "message");
    let whole =
        ["+OK\r\n", ":1\r\n", "$-1\r\n", "*0\r\n", "*-1\r\n", "*1\r\n*1\r\n:7\r\n", "$0\r\n\r\n"];
    for value in whole {
        assert_eq!(end_of_value(value.as_bytes()), Some(value.len()), "{value:?}");
    }
}
