//! The loop: messages of the host, commands, children that end.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use novum_proto::guest::PROTOCOL;
use novum_proto::guest::v1::{Adopt, Adopted, Failed, Hello, Ready, Resize, Start, to_guest, to_host};

use crate::adopt::Adopter;
use crate::command::Command;
use crate::link::Link;
use crate::{files, setup, sys};

/// How often a command is looked at whose waiting for input is to be told.
const WATCH_MS: i32 = 2;

/// Serves the host until it goes away or says that the guest shall end.
pub(crate) fn serve(link: Link) -> io::Result<()> {
    let children = sys::ChildSignals::new()?;
    let mut session = Session { link, adopter: Adopter::default(), commands: BTreeMap::new(), over: false };
    session.hello();
    while !session.over {
        session.wait(&children)?;
        session.link.send()?;
    }
    Ok(())
}

struct Session {
    link: Link,
    adopter: Adopter,
    commands: BTreeMap<u32, Command>,
    over: bool,
}

impl Session {
    fn hello(&mut self) {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        self.link.push(to_host::Message::Hello(Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: kernel.trim().into(),
        }));
    }

    /// Sleeps until something can be done, and does it.
    fn wait(&mut self, children: &sys::ChildSignals) -> io::Result<()> {
        let mut events: Vec<(BorrowedFd<'_>, bool)> =
            vec![(self.link.fd(), false), (children.as_fd(), false)];
        if self.link.wants_to_send() {
            events.push((self.link.fd(), true));
        }
        let room = self.link.has_room();
        events.extend(self.commands.values().flat_map(|command| command.waits(room)));
        let watching = self.commands.values().any(Command::is_watched);
        let ready = sys::poll(&events, if watching { WATCH_MS } else { -1 })?;
        let (from_host, from_children) = (ready[0], ready[1]);
        let quiet = !ready.contains(&true);
        if from_children {
            children.take();
            self.reap();
        }
        if from_host {
            self.link.receive()?;
            while let Some(message) = self.link.next()? {
                self.receive(message)?;
            }
        }
        let link = &mut self.link;
        self.commands.retain(|_, command| !command.pump(link));
        if quiet && !link.wants_to_send() {
            self.commands.values_mut().for_each(|command| command.watch(link));
        }
        Ok(())
    }

    fn reap(&mut self) {
        while let Some((pid, ended)) = sys::reap() {
            // Most are orphans, which PID 1 inherits.
            if let Some(command) = self.commands.values_mut().find(|command| command.pid() == pid) {
                command.note_end(ended);
            }
        }
    }

    fn receive(&mut self, message: to_guest::Message) -> io::Result<()> {
        use to_guest::Message;
        match message {
            Message::Setup(wanted) => {
                match setup::apply(&wanted).and_then(|()| self.adopter.prepare(&wanted.machine_id)) {
                    Ok(()) => self.link.push(to_host::Message::Ready(Ready {})),
                    Err(error) => self.fail(0, &error),
                }
            }
            Message::Start(start) => self.start(&start),
            // It may have ended while this was on its way.
            Message::Input(input) => {
                if let Some(command) = self.commands.get_mut(&input.command) {
                    command.take_input(input)?;
                }
            }
            Message::Credit(credit) => {
                if let Some(command) = self.commands.get_mut(&credit.command) {
                    command.grant(&credit);
                }
            }
            Message::Signal(signal) => {
                if let Some(command) = self.commands.get(&signal.command) {
                    command.signal(signal.number);
                }
            }
            Message::Resize(resize) => self.resize(&resize),
            Message::Clock(clock) => self.report(setup::set_clock(&clock)),
            Message::Entropy(entropy) => self.report(setup::reseed(&entropy)),
            Message::PowerOff(_) => self.over = true,
            Message::Adopt(adopt) => self.adopt(&adopt)?,
            Message::File(request) => {
                let reply = files::serve(&request);
                self.link.push(reply);
            }
        }
        Ok(())
    }

    /// A guest that could not become itself does nothing more.
    fn adopt(&mut self, adopt: &Adopt) -> io::Result<()> {
        match self.adopter.apply(adopt) {
            Ok(()) => self.link.push(to_host::Message::Adopted(Adopted {})),
            Err(error) => {
                self.fail(0, &error);
                self.link.send()?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn start(&mut self, start: &Start) {
        if self.commands.contains_key(&start.command) {
            return self.fail(start.command, &io::ErrorKind::AlreadyExists.into());
        }
        match Command::start(start) {
            Ok(command) => {
                self.link.push(command.started());
                self.commands.insert(start.command, command);
            }
            Err(error) => self.fail(start.command, &error),
        }
    }

    fn resize(&self, resize: &Resize) {
        let terminal = self.commands.get(&resize.command).and_then(Command::terminal);
        if let (Some(fd), Some(size)) = (terminal, &resize.terminal) {
            sys::resize_terminal(fd, size);
        }
    }

    fn report(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.fail(0, &error);
        }
    }

    fn fail(&mut self, command: u32, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0) as u32;
        self.link.push(to_host::Message::Failed(Failed { command, reason: error.to_string(), errno }));
    }
}
