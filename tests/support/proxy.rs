//! A TCP proxy in front of the broker that passes, stalls or refuses, and reads MQTT as it goes by.
//!
//! It notes which result numbers the broker acknowledged, and when connections were attempted.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::now;

/// What happens to bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// They pass.
    Pass = 0,
    /// They wait; connections stay open.
    Stall = 1,
    /// New connections are closed at once.
    Refuse = 2,
}

#[derive(Default)]
struct Shared {
    mode: AtomicU8,
    ended: AtomicBool,
    attempts: Mutex<Vec<Instant>>,
    acked: Mutex<BTreeSet<u64>>,
    open: Mutex<Vec<TcpStream>>,
    passed: AtomicU64,
}

/// The proxy. Its threads end when it is dropped.
pub struct Proxy {
    /// Its port on 127.0.0.1.
    pub port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A proxy for the broker at `target`.
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if state.ended.load(Ordering::SeqCst) {
                    return;
                }
                state.attempts.lock().unwrap().push(now());
                if state.mode.load(Ordering::SeqCst) != Mode::Refuse as u8 {
                    join(client, target, &state);
                }
            }
        });
        Self { port, shared }
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Breaks every open connection.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// When connections were attempted.
    pub fn attempts(&self) -> Vec<Instant> {
        self.shared.attempts.lock().unwrap().clone()
    }

    /// Bytes that went by, both ways together.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }

    /// Result numbers that the broker acknowledged.
    pub fn acked(&self) -> BTreeSet<u64> {
        self.shared.acked.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the listener; it may be gone.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn join(client: TcpStream, target: u16, shared: &Arc<Shared>) {
    let Ok(broker) = TcpStream::connect(("127.0.0.1", target)) else { return };
    for stream in [&client, &broker] {
        stream.set_nodelay(true).unwrap();
    }
    let mut open = shared.open.lock().unwrap();
    open.push(client.try_clone().unwrap());
    open.push(broker.try_clone().unwrap());
    drop(open);
    let numbers = Arc::new(Mutex::new(HashMap::new()));
    let published = Arc::clone(&numbers);
    let (up, down) = (Arc::clone(shared), Arc::clone(shared));
    let (client_out, broker_out) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
    std::thread::spawn(move || {
        copy(client, broker_out, &up, |kind, body| {
            if let Some((id, number)) = published_number(kind, body) {
                published.lock().unwrap().insert(id, number);
            }
        });
    });
    std::thread::spawn(move || {
        let log = Arc::clone(&down);
        copy(broker, client_out, &down, |kind, body| {
            if kind >> 4 == 4 && body.len() == 2 {
                let id = u16::from_be_bytes([body[0], body[1]]);
                if let Some(number) = numbers.lock().unwrap().remove(&id) {
                    log.acked.lock().unwrap().insert(number);
                }
            }
        });
    });
}

/// Copies until either end closes; `see` gets each whole packet before it is passed on.
fn copy(mut from: TcpStream, mut to: TcpStream, shared: &Shared, mut see: impl FnMut(u8, &[u8])) {
    let mut buffer = [0; 16 * 1024];
    let mut packets = Vec::new();
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            break;
        }
        packets.extend_from_slice(&buffer[..count]);
        while let Some((kind, start, end)) = packet(&packets) {
            see(kind, &packets[start..end]);
            packets.drain(..end);
        }
        while shared.mode.load(Ordering::SeqCst) == Mode::Stall as u8
            && !shared.ended.load(Ordering::SeqCst)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
        shared.passed.fetch_add(count as u64, Ordering::SeqCst);
    }
    // The other end may have closed first.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// First byte, and the range of the body, of the first whole packet.
pub fn packet(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let mut length = 0;
    for (index, byte) in bytes.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let start = index + 2;
            return (bytes.len() >= start + length).then_some((bytes[0], start, start + length));
        }
    }
    None
}

/// Packet identifier and result number of a PUBLISH with QoS 1.
fn published_number(kind: u8, body: &[u8]) -> Option<(u16, u64)> {
    if kind >> 4 != 3 || kind & 0b110 != 0b010 {
        return None;
    }
    let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let id = u16::from_be_bytes([body[2 + topic], body[3 + topic]]);
    let payload: serde_json::Value = serde_json::from_slice(&body[4 + topic..]).ok()?;
    Some((id, payload.get("seq")?.as_u64()?))
}
