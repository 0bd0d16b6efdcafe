//! Who a restored guest is: its network card, its addresses, its ids. In the rig: `cargo xtask rig test --test linux_identity`.
#![cfg(feature = "vm")]

mod guest;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use guest::{Log, PATIENCE, card, in_own_network, on_host, our_kernel, with_agent};
use novum_sandbox::linux::guest::{
    Address, BootError, Command, CommandEnd, Guest, GuestConfig, Identity, Kernel, Network, Streams,
};
use novum_sandbox::{Input, Output};
use novum_snapshot::{Snapshot, Store};

fn network(number: u8) -> Network {
    let address =
        Address { ip: [10, 0, 0, number].into(), prefix: 24, gateway: Some([10, 0, 0, 254].into()) };
    Network { card: card(number.into()), address: Some(address) }
}

/// Output of a script of busybox that ends well.
async fn run(guest: &mut Guest, script: &str) -> String {
    let args = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).into();
    let log = Arc::new(Log::default());
    let streams = Streams {
        input: Input::Bytes(Bytes::new()),
        output: Output::Collect { limit_bytes: 1 << 20 },
        log: log.clone(),
        control: None,
        deadline: Instant::now() + PATIENCE,
    };
    let done = guest.run(&Command { args, ..Command::default() }, streams).await;
    let done = done.unwrap_or_else(|error| panic!("{error}\n{}", guest.console()));
    let output = String::from_utf8_lossy(&done.output).into_owned();
    assert_eq!(done.end, CommandEnd::Code(0), "{script}: {output} {}", log.text());
    output
}

const WHO: &str = "b=/bin/busybox; $b cat /sys/class/net/eth0/address /etc/machine-id
    $b ip -4 addr show eth0 | $b awk '/inet/ { print $2 }'; $b ip route | $b awk '/default/ { print $3 }'";

/// What [`WHO`] says of guest `number`.
fn who(number: u8, id: &str) -> String {
    format!("52:4e:00:00:00:{number:02x}\n{id}\n10.0.0.{number}/24\n10.0.0.254\n")
}

#[tokio::test]
async fn every_fork_has_a_card_an_address_and_ids_of_its_own() {
    let test = "every_fork_has_a_card_an_address_and_ids_of_its_own";
    let Some(kernel) = our_kernel(test) else { return };
    if !in_own_network(test) {
        return;
    }
    on_host("brctl addbr bridge");
    on_host("ip addr add 10.0.0.254/24 dev bridge");
    on_host("ip link set bridge up");
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let kernel = Kernel { image: kernel.vmlinux(), modules: None };
    let ids = [[0x33; 16], [0x11; 16], [0x22; 16]];
    let text = |byte: &str| byte.repeat(16);
    let config =
        GuestConfig { network: Some(network(1)), machine_id: Some(ids[1]), ..with_agent(kernel, "first") };
    let mut first = Guest::boot(config.clone()).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(run(&mut first, WHO).await, who(1, &text("11")));
    let reach =
        |number: u8| format!("until /bin/busybox ping -c 1 -W 1 10.0.0.{number} > /dev/null; do :; done");
    run(&mut first, &reach(254)).await;

    let digest = first.snapshot(&store).await.unwrap();
    let snapshot = Snapshot::open(&store, &digest).unwrap();
    let identity = |number: u8| Identity {
        hostname: format!("guest{number}"),
        machine_id: Some(ids[usize::from(number) % 3]),
        root: config.root.clone(),
        directories: Vec::new(),
        network: Some(network(number)),
        patience: PATIENCE,
    };
    let mut second = Guest::restore(&snapshot, &identity(2)).await.unwrap();
    let mut third = Guest::restore(&snapshot, &identity(3)).await.unwrap();
    assert_eq!(run(&mut second, WHO).await, who(2, &text("22")));
    assert_eq!(run(&mut third, WHO).await, who(3, &text("33")));
    // All three on one bridge, each by its own address.
    run(&mut second, &format!("{}; {}; {}", reach(1), reach(3), reach(254))).await;
    run(&mut third, &reach(1)).await;
    assert_eq!(run(&mut first, WHO).await, who(1, &text("11")), "the saved one is who it was");

    let without = Guest::restore(&snapshot, &Identity { network: None, ..identity(4) }).await;
    let refused = without.err().map(|error| format!("{error:?}")).unwrap_or_default();
    assert!(refused.contains("network card"), "{refused}");
    let mut impossible = identity(5);
    let address = impossible.network.as_mut().and_then(|network| network.address.as_mut()).unwrap();
    address.prefix = 33;
    let error = Guest::restore(&snapshot, &impossible).await.err();
    assert!(matches!(&error, Some(BootError::Setup(reason)) if reason.contains("prefix")), "{error:?}");
}
