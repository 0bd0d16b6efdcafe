//! Who a restored guest is: its network card, its addresses, its ids. In the rig: `cargo xtask rig test --test linux_identity`.
#![cfg(feature = "vm")]

mod guest;

use std::collections::HashSet;
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

fn streams(input: &'static str, log: &Arc<Log>) -> Streams {
    Streams {
        input: Input::Bytes(Bytes::from_static(input.as_bytes())),
        output: Output::Collect { limit_bytes: 1 << 20 },
        log: log.clone(),
        control: None,
        deadline: Instant::now() + PATIENCE,
    }
}

fn command(args: &[&str]) -> Command {
    let env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    Command { args: args.iter().map(|arg| (*arg).to_owned()).collect(), env, ..Command::default() }
}

/// Output of a script of busybox that ends well.
async fn run(guest: &mut Guest, script: &str) -> String {
    let log = Arc::new(Log::default());
    let done = guest.run(&command(&["/bin/busybox", "sh", "-c", script]), streams("", &log)).await;
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
        balloon: false,
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

/// Draws of a process that was running, and had drawn, before the guest was saved; then of processes that start afterwards.
/// `own` lines come from generators that the process had seeded in its own memory, before and after it follows
/// docs/linux-engine.md: a new boot id means to seed them again.
const DRAWS: &str = r#"
import ctypes, os, random, secrets, ssl, subprocess, sys, uuid
libc, boot_id = ctypes.CDLL(None), '/proc/sys/kernel/random/boot_id'
def draw():
    arc4 = ctypes.create_string_buffer(16)
    libc.arc4random_buf(arc4, ctypes.c_size_t(16))
    return [os.getrandom(16).hex(), open('/dev/urandom', 'rb').read(16).hex(), arc4.raw.hex(), secrets.token_hex(16),
            str(random.SystemRandom().random()), str(uuid.uuid4())]
def own():
    return [str(random.random()), ssl.RAND_bytes(16).hex()]
draw(), own()
before = open(boot_id).read()
sys.stdin.readline()
print(*draw(), sep='\n')
print(*('own ' + text for text in own()), sep='\n')
if open(boot_id).read() != before:
    random.seed()
    ssl.RAND_add(os.urandom(32), 32)
print(*own(), sep='\n', flush=True)
at_random = 'import ctypes; find = ctypes.CDLL(None).getauxval; find.restype = ctypes.c_void_p; ' \
    'print(ctypes.string_at(find(25), 16).hex())'
started = 'import random, ssl; print(random.random(), ssl.RAND_bytes(16).hex(), sep="\\n")'
for program in [['/usr/bin/python3', '-c', at_random], ['/usr/bin/python3', '-c', started], ['openssl', 'rand', '-hex', '16']]:
    subprocess.run(program, check=True)
"#;

#[tokio::test]
async fn no_two_forks_draw_the_same_random_bytes() {
    let Some(kernel) = our_kernel("no_two_forks_draw_the_same_random_bytes") else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let kernel = Kernel { image: kernel.vmlinux(), modules: None };
    let config = with_agent(kernel, "first");
    let mut first = Guest::boot(config.clone()).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(first.begin(&command(&["/usr/bin/python3", "-c", DRAWS]), PATIENCE).await.unwrap());
    let identity = |name: &str| Identity {
        hostname: name.into(),
        machine_id: None,
        root: config.root.clone(),
        directories: Vec::new(),
        network: None,
        balloon: false,
        patience: PATIENCE,
    };
    let mut forks = first.fork(&store, &[identity("one"), identity("two")]).await.unwrap();
    let (mut seen, mut own) = (HashSet::new(), Vec::new());
    for guest in &mut forks {
        let log = Arc::new(Log::default());
        let done = guest.go_on(streams("\n", &log)).await.unwrap();
        let output = String::from_utf8_lossy(&done.output).into_owned();
        assert_eq!((done.end, output.lines().count()), (CommandEnd::Code(0), 14), "{output}{}", log.text());
        for line in output.lines() {
            match line.strip_prefix("own ") {
                Some(text) => own.push(text.to_owned()),
                None => assert!(seen.insert(line.to_owned()), "{line} was drawn twice"),
            }
        }
    }
    println!("generators in a process's memory, in two forks, before they are seeded again: {own:#?}");
}
