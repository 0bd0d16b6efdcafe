//! WASI preview 1 commands: core modules that export `_start` and import from `wasi_snapshot_preview1` only.

use std::ops::Range;
use std::time::Duration;

use wasmtime::{
    Engine, Extern, ExternType, InstancePre, Linker, Memory, Module, ModuleExport, Store, TypedFunc,
};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtxBuilder, WasiView};

use super::call::Call;
use super::hot;
use super::image::Kind;
use super::settings::RESOURCES;
use super::stdin::Stdin;
use super::tenant::Tenant;
use crate::engine::{ExitStatus, Input};
use crate::error::Error;

pub(super) const NAMESPACE: &str = "wasi_snapshot_preview1";

/// The WASI state of one store.
#[derive(Default)]
pub(super) struct Preview1 {
    /// Not there while an instance is made.
    run: Option<Run>,
    /// wasmtime-wasi's state, made when a function of it is first called.
    library: Option<Box<WasiP1Ctx>>,
    /// The program's memory, once there is an instance.
    pub(super) memory: Option<Memory>,
    /// The standard descriptors are not what they were: only the library knows what they are now.
    given_up: bool,
    /// Making the instance called the host.
    touched: bool,
}

/// One invocation.
pub(super) struct Run {
    pub(super) stdin: Stdin,
    pub(super) call: Call,
}

impl Preview1 {
    /// wasmtime-wasi's state.
    pub(super) fn library(&mut self) -> &mut WasiP1Ctx {
        self.touched |= self.run.is_none();
        // Shared directories were opened by `enter`, so nothing can fail here; an empty context shows nothing.
        let run = self.run.as_ref();
        self.library.get_or_insert_with(|| {
            run.and_then(|run| run.library().ok())
                .unwrap_or_else(|| Box::new(WasiCtxBuilder::new().build_p1()))
        })
    }

    /// The invocation, if `fd` is one of its standard descriptors `among`. `Some(None)` while an instance is made.
    pub(super) fn serves(&mut self, fd: u32, among: Range<u32>) -> Option<Option<&Run>> {
        self.touch();
        (among.contains(&fd) && !self.given_up).then_some(self.run.as_ref())
    }

    /// `fd` is closed or replaced: if it is a standard descriptor, the library serves these from now on.
    pub(super) fn give_up(&mut self, fd: u32) {
        self.given_up |= fd < 3;
    }

    /// No directory can be open.
    pub(super) fn has_no_directories(&mut self) -> bool {
        self.touch();
        self.library.is_none()
    }

    /// Code of the program called the host.
    pub(super) fn touch(&mut self) {
        self.touched |= self.run.is_none();
    }

    /// `argv` as C strings.
    pub(super) fn args(&mut self) -> Vec<Vec<u8>> {
        self.touch();
        let args = self.run.iter().flat_map(|run| run.call.args());
        args.map(|arg| [arg.as_bytes(), b"\0"].concat()).collect()
    }

    /// `environ` as C strings.
    pub(super) fn env(&mut self) -> Vec<Vec<u8>> {
        self.touch();
        let env = self.run.iter().flat_map(|run| run.call.env());
        env.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat()).collect()
    }

    /// Since the invocation's start.
    pub(super) fn elapsed(&mut self) -> Duration {
        self.touch();
        self.run.as_ref().map_or(Duration::ZERO, |run| run.call.started.elapsed())
    }
}

impl Run {
    fn library(&self) -> Result<Box<WasiP1Ctx>, Error> {
        let mut wasi = self.call.context()?;
        wasi.stdin(self.stdin.clone()).stdout(self.call.stdout.clone());
        let mut library = wasi.build_p1();
        library.ctx().table.set_max_capacity(RESOURCES);
        Ok(Box::new(library))
    }
}

/// The functions that a command may import.
pub(super) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Tenant<Preview1>>> {
    let mut linker = Linker::new(engine);
    hot::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// A command module.
pub(super) struct Command {
    pre: InstancePre<Tenant<Preview1>>,
    start: ModuleExport,
    memory: Option<ModuleExport>,
}

impl Command {
    /// # Errors
    /// What the module lacks, as a sentence.
    pub(super) fn new(linker: &Linker<Tenant<Preview1>>, module: &Module) -> Result<Self, String> {
        check_imports(module)?;
        check_exports(module)?;
        let pre = linker.instantiate_pre(module).map_err(|error| format!("{error:#}"))?;
        // Looked up once: a name costs more at each start.
        let start = module.get_export_index("_start").ok_or("it exports no `_start`")?;
        Ok(Self { pre, start, memory: module.get_export_index("memory") })
    }
}

fn check_imports(module: &Module) -> Result<(), String> {
    for import in module.imports() {
        let (from, name) = (import.module(), import.name());
        if from == NAMESPACE {
            continue;
        }
        let hint = match from {
            "wasi_unstable" => "; it was built for WASI preview 0: rebuild it for wasm32-wasip1",
            "wasi" => "; it uses WASI threads, which a function cannot have",
            "env" => "; a symbol stayed undefined when it was linked, or it was built for emscripten",
            from if from.starts_with("wbg") || from.starts_with("__wbindgen") => {
                "; it was built by wasm-bindgen for a browser: build it for wasm32-wasip1"
            }
            _ => "",
        };
        return Err(format!(
            "it imports `{}::{}`, which novum does not provide (a module may import only from `{NAMESPACE}`){hint}",
            printable(from),
            printable(name)
        ));
    }
    Ok(())
}

fn check_exports(module: &Module) -> Result<(), String> {
    match module.get_export("_start") {
        Some(ExternType::Func(ty)) if ty.params().len() == 0 && ty.results().len() == 0 => {}
        Some(_) => return Err("its export `_start` is not a function without parameters and results".into()),
        None if module.get_export("_initialize").is_some() => {
            return Err("it exports `_initialize` and no `_start`: it is a library (a WASI reactor); \
                        build it as a command with a `main` function"
                .into());
        }
        None => return Err("it exports no function `_start`; build it as a WASI command".into()),
    }
    let memory = matches!(module.get_export("memory"), Some(ExternType::Memory(_)));
    if !memory && module.imports().len() > 0 {
        return Err("it exports no memory named `memory`, which WASI calls need".into());
    }
    Ok(())
}

/// A name from a module, fit for a message.
pub(super) fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(100).collect()
}

impl Kind for Command {
    type Wasi = Preview1;
    type Instance = TypedFunc<(), ()>;
    type Task = ();

    fn engine(&self) -> &Engine {
        self.pre.module().engine()
    }

    async fn instantiate(&self, store: &mut Store<Tenant<Preview1>>) -> wasmtime::Result<Self::Instance> {
        let instance = self.pre.instantiate_async(&mut *store).await?;
        if let Some(memory) = &self.memory {
            let memory = instance.get_module_export(&mut *store, memory).and_then(Extern::into_memory);
            store.data_mut().wasi.memory = memory;
        }
        let start = instance.get_module_export(&mut *store, &self.start).and_then(Extern::into_func);
        start.ok_or_else(|| wasmtime::Error::msg("`_start` is not a function"))?.typed(store)
    }

    fn touched(wasi: &Preview1) -> bool {
        wasi.touched
    }

    fn enter(store: &mut Store<Tenant<Preview1>>, call: Call, input: Input) -> Result<(), Error> {
        let shares = !call.function.manifest.shares.is_empty();
        let run = Run { stdin: Stdin::new(input), call };
        let library = if shares { Some(run.library()?) } else { None };
        let wasi = &mut store.data_mut().wasi;
        (wasi.run, wasi.library) = (Some(run), library);
        Ok(())
    }

    async fn run(
        store: &mut Store<Tenant<Preview1>>,
        start: Self::Instance,
        (): (),
    ) -> wasmtime::Result<ExitStatus> {
        start.call_async(store, ()).await.map(|()| ExitStatus::Code(0))
    }
}
