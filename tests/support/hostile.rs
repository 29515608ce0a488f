//! A broker that misbehaves: one trick for each connection, then the real one.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::agent::LONG;
use super::now;
use super::proxy::packet;

/// A flood goes on until more results than these came through it.
pub const FLOODED_RESULTS: usize = 50;

/// What one connection gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trick {
    /// TCP only: no CONNACK ever.
    NoConnack,
    /// CONNACK, then nothing, pings included.
    NoPing,
    /// Everything but PUBACK.
    NoAck,
    /// PUBACKs for packet identifiers that nobody uses.
    ForeignAck,
    /// A PUBACK of one byte.
    ShortAck,
    /// A packet of the reserved type 15.
    Reserved,
    /// A remaining length that does not end after four bytes.
    EndlessLength,
    /// A PUBLISH that announces 256 MiB.
    Huge,
    /// A PUBLISH whose topic is longer than the packet.
    LongTopic,
    /// A SUBACK nobody asked for, of no return code.
    EmptySuback,
    /// Random bytes.
    Garbage,
    /// Nothing is read after CONNACK; the line fills up.
    NoReading,
    /// Commands without end for three seconds, or longer until a few results came through; everything else in order.
    Flood,
    /// Half a packet, then the end.
    Half,
}

/// The misbehaving broker. Its threads end with the process.
pub struct Hostile {
    /// Its port on 127.0.0.1.
    pub port: u16,
    left: Arc<Mutex<VecDeque<Trick>>>,
    acked: Arc<AtomicUsize>,
}

impl Hostile {
    /// Plays `tricks` to one connection each; later connections are passed to `target`.
    pub fn start(tricks: impl IntoIterator<Item = Trick>, target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let left = Arc::new(Mutex::new(tricks.into_iter().collect::<VecDeque<_>>()));
        let acked = Arc::new(AtomicUsize::new(0));
        let (state, count) = (Arc::clone(&left), Arc::clone(&acked));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let trick = state.lock().unwrap().pop_front();
                let count = Arc::clone(&count);
                std::thread::spawn(move || match trick {
                    // The client may end the connection at any point of a trick.
                    Some(trick) => drop(play(trick, client, count)),
                    None => pass(client, target),
                });
            }
        });
        Self { port, left, acked }
    }

    /// Whether every trick has been begun.
    pub fn is_through(&self) -> bool {
        self.left.lock().unwrap().is_empty()
    }

    /// PUBLISH packets acknowledged during tricks.
    pub fn acked(&self) -> usize {
        self.acked.load(Ordering::SeqCst)
    }
}

fn pass(client: TcpStream, target: u16) {
    let Ok(broker) = TcpStream::connect(("127.0.0.1", target)) else { return };
    let (mut from_client, mut to_broker) =
        (client.try_clone().unwrap(), broker.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_broker);
        let _ = to_broker.shutdown(Shutdown::Both);
    });
    let (mut from_broker, mut to_client) = (broker, client);
    let _ = std::io::copy(&mut from_broker, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Both);
}

fn play(trick: Trick, mut client: TcpStream, acked: Arc<AtomicUsize>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    let mut packets = Vec::new();
    // Whole packets at a time, whoever writes.
    let writer = Arc::new(Mutex::new(client.try_clone()?));
    let mut flooding = None;
    if trick == Trick::NoConnack {
        return wait_for_end(&mut client);
    }
    loop {
        let count = client.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        packets.extend_from_slice(&buffer[..count]);
        while let Some((kind, start, end)) = packet(&packets) {
            let body: Vec<u8> = packets[start..end].to_vec();
            packets.drain(..end);
            match kind >> 4 {
                1 => {
                    client.write_all(&[0x20, 2, 0, 0])?;
                    match trick {
                        Trick::NoPing => return wait_for_end(&mut client),
                        Trick::NoReading => loop {
                            std::thread::sleep(Duration::from_secs(1));
                            // Fails once the client has gone.
                            client.write_all(&[0xD0, 0])?;
                        },
                        Trick::Flood => {
                            flooding = Some(flood(Arc::clone(&writer), Arc::clone(&acked)));
                        }
                        _ => {}
                    }
                }
                8 => writer.lock().unwrap().write_all(&[0x90, 3, body[0], body[1], 1])?,
                12 => writer.lock().unwrap().write_all(&[0xD0, 0])?,
                3 if kind & 0b110 != 0 => {
                    let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
                    let id = [body[2 + topic], body[3 + topic]];
                    if flooding.as_ref().is_some_and(std::thread::JoinHandle::is_finished) {
                        return client.shutdown(Shutdown::Both);
                    }
                    answer(trick, &mut writer.lock().unwrap(), id)?;
                    acked.fetch_add(usize::from(trick == Trick::Flood), Ordering::SeqCst);
                }
                _ => {}
            }
        }
    }
}

/// What a PUBLISH gets.
fn answer(trick: Trick, client: &mut TcpStream, id: [u8; 2]) -> std::io::Result<()> {
    match trick {
        Trick::NoAck => Ok(()),
        Trick::ForeignAck => client.write_all(&[0x40, 2, id[0] ^ 0x40, id[1]]),
        Trick::ShortAck => client.write_all(&[0x40, 1, 7]),
        Trick::Reserved => client.write_all(&[0xF7, 2, 1, 2]),
        Trick::EndlessLength => client.write_all(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        Trick::Huge => client.write_all(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F, 0, 1, b'a']),
        Trick::LongTopic => client.write_all(&[0x30, 4, 0xFF, 0xFF, b'a', b'b']),
        Trick::EmptySuback => client.write_all(&[0x90, 2, 0, 1]),
        Trick::Garbage => client.write_all(&[0x5A, 0x00, 0xC3, 0x99, 0x01, 0xFE, 0x7B, 0x44]),
        Trick::Half => {
            client.write_all(&[0x40, 2, id[0]])?;
            client.shutdown(Shutdown::Both)
        }
        _ => client.write_all(&[0x40, 2, id[0], id[1]]),
    }
}

/// Commands as fast as they are taken.
fn flood(client: Arc<Mutex<TcpStream>>, acked: Arc<AtomicUsize>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let topic = b"ocelli/device/dock-3/cmd/nothing";
        let mut message = vec![0x30, (2 + topic.len() + 2) as u8, 0, topic.len() as u8];
        message.extend_from_slice(topic);
        message.extend_from_slice(b"{}");
        let many = message.repeat(100);
        let begin = now();
        // On a busy machine results take longer to come through.
        let goes_on = || {
            let passed = now() - begin;
            let few = acked.load(Ordering::SeqCst) <= FLOODED_RESULTS;
            passed < Duration::from_secs(3) || few && passed < LONG
        };
        while goes_on() && client.lock().unwrap().write_all(&many).is_ok() {
            // Lets the other writer in.
            std::thread::yield_now();
        }
    })
}

/// Reads until the client gives up.
fn wait_for_end(client: &mut TcpStream) -> std::io::Result<()> {
    std::io::copy(client, &mut std::io::sink()).map(drop)
}
