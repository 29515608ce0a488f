//! Sets the clock from time servers: SNTP (RFC 4330), unauthenticated, stepping only.
//!
//! A board without a battery wakes up in 1970, and TLS needs a plausible time: the image's build time is the floor, set first and
//! without network. An answer below the floor is refused.

use std::io;
use std::net::{ToSocketAddrs, UdpSocket};
use std::time::Duration;

use crate::clock;

/// Seconds from 1900, where NTP counts from, to 1970.
const ERA: u64 = 2_208_988_800;
const WAIT: Duration = Duration::from_secs(5);
/// A clock that is nearer than this is left alone.
pub const NEAR: Duration = Duration::from_millis(20);

/// Sets the clock forward to the floor if it stands before it; says whether it did.
///
/// # Errors
/// Without the right to set the clock.
pub fn raise_to_floor(floor: Duration) -> io::Result<bool> {
    if clock::wall() >= floor {
        return Ok(false);
    }
    clock::set_wall(floor)?;
    Ok(true)
}

/// Asks one server; the time of day now by its clock.
///
/// # Errors
/// No answer in five seconds, or none that can be used.
pub fn ask(server: &str) -> io::Result<Duration> {
    let named = if server.contains(':') { server.to_owned() } else { format!("{server}:123") };
    let address = named.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(WAIT))?;
    socket.connect(address)?;
    // The answer must repeat this number: a late or forged one of somebody who did not see the question is dropped.
    let cookie = (clock::wall().as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(40))
        .to_be_bytes();
    let mut packet = [0; 48];
    packet[0] = 0b00_100_011;
    packet[40..].copy_from_slice(&cookie);
    let asked = clock::now();
    socket.send(&packet)?;
    let mut answer = [0; 48];
    let length = socket.recv(&mut answer)?;
    let round = clock::now() - asked;
    let sent = parse(&answer[..length], &cookie)
        .map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))?;
    Ok(sent + round / 2)
}

/// The transmit time of an answer.
fn parse(answer: &[u8], cookie: &[u8; 8]) -> Result<Duration, &'static str> {
    let answer: &[u8; 48] = answer.try_into().map_err(|_| "the answer is no SNTP packet")?;
    let (leap, mode, stratum) = (answer[0] >> 6, answer[0] & 7, answer[1]);
    if mode != 4 || answer[24..32] != cookie[..] {
        return Err("the answer is to another question");
    }
    if leap == 3 || stratum == 0 || stratum > 15 {
        return Err("the server does not know the time");
    }
    let word = |at: usize| {
        u32::from_be_bytes([answer[at], answer[at + 1], answer[at + 2], answer[at + 3]])
    };
    let (seconds, fraction) = (u64::from(word(40)), u64::from(word(44)));
    // 32 bits of seconds end in 2036; what is below 1970 belongs to the next era.
    let seconds = if seconds < ERA { seconds + (1 << 32) } else { seconds };
    let nanos = u32::try_from((fraction * 1_000_000_000) >> 32).unwrap_or(0);
    Ok(Duration::new(seconds - ERA, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(seconds: u32, cookie: [u8; 8]) -> [u8; 48] {
        let mut packet = [0; 48];
        (packet[0], packet[1]) = (0b00_100_100, 2);
        packet[24..32].copy_from_slice(&cookie);
        packet[40..44].copy_from_slice(&seconds.to_be_bytes());
        packet[44] = 0x80;
        packet
    }

    #[test]
    fn an_answer_is_a_time_since_1970() {
        let cookie = [9; 8];
        let seconds = u32::try_from(1_795_251_600 + ERA).unwrap();
        let time = parse(&answer(seconds, cookie), &cookie).unwrap();
        assert_eq!(time, Duration::from_millis(1_795_251_600_500));
        let after_2036 = parse(&answer(100, cookie), &cookie).unwrap();
        assert_eq!(after_2036.as_secs(), (1 << 32) + 100 - ERA);
    }

    #[test]
    fn other_answers_are_refused() {
        let cookie = [9; 8];
        let good = answer(3_900_000_000, cookie);
        let changed = |at: usize, value: u8| {
            let mut packet = good;
            packet[at] = value;
            parse(&packet, &cookie)
        };
        assert!(parse(&good, &cookie).is_ok());
        assert!(changed(0, 0b00_100_011).is_err(), "a question");
        assert!(changed(0, 0b11_100_100).is_err(), "not synchronised");
        assert!(changed(1, 0).is_err(), "kiss of death");
        assert!(changed(24, 1).is_err(), "to another question");
        assert!(parse(&good[..47], &cookie).is_err(), "short");
    }

    #[test]
    fn a_server_is_asked_and_answers() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap().to_string();
        let serving = std::thread::spawn(move || {
            let mut question = [0; 48];
            let (_, from) = server.recv_from(&mut question).unwrap();
            let cookie = question[40..48].try_into().unwrap();
            server.send_to(&answer(4_000_000_000, cookie), from).unwrap();
        });
        let time = ask(&address).unwrap();
        serving.join().unwrap();
        assert_eq!(time.as_secs(), 4_000_000_000 - ERA);
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error() {
        assert!(ask("127.0.0.1:1").is_err());
    }

    #[test]
    fn a_clock_after_the_floor_is_left_alone() {
        assert!(!raise_to_floor(Duration::from_secs(1)).unwrap());
    }
}
