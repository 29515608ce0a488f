//! A broker inside this process, for the demonstration: loopback only, no disk.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

use crate::Failure;

/// Starts a broker on a free port of 127.0.0.1 and returns the port. It runs until the process ends.
pub(super) fn start() -> Result<u16, Failure> {
    let port =
        free_port().map_err(|error| Failure(format!("no free TCP port on 127.0.0.1: {error}")))?;
    let connections = ConnectionSettings {
        connection_timeout_ms: 5_000,
        max_payload_size: 8 * 1024 * 1024,
        max_inflight_count: 100,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = ServerSettings {
        name: "demo".to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    let router = RouterConfig {
        max_connections: 16,
        max_outgoing_packet_count: 200,
        max_segment_size: 4 * 1024 * 1024,
        max_segment_count: 8,
        ..RouterConfig::default()
    };
    let v4 = Some(HashMap::from([("demo".to_owned(), server)]));
    let mut broker = Broker::new(Config { router, v4, ..Config::default() });
    std::thread::Builder::new()
        .name("broker".to_owned())
        .spawn(move || broker.start().map_err(Box::new))
        .map_err(|error| Failure(format!("cannot start the broker's thread: {error}")))?;
    Ok(port)
}

/// Asks the system for a port. Another process could take it before the broker does; then connecting fails.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
