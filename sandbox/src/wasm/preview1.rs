//! WASI preview 1 commands: core modules that export `_start` and import from `wasi_snapshot_preview1` only.

use wasmtime::{Engine, ExternType, InstancePre, Linker, Module, Store, TypedFunc};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::{I32Exit, WasiCtxBuilder, WasiView};

use super::call::Call;
use super::image::Kind;
use super::settings::RESOURCES;
use super::stdin::Stdin;
use super::tenant::Tenant;
use crate::engine::{ExitStatus, Input};
use crate::error::Error;

const NAMESPACE: &str = "wasi_snapshot_preview1";

/// The WASI state of one store.
#[derive(Default)]
pub(super) struct Preview1 {
    /// wasmtime-wasi's state, made when a function of it is first called.
    library: Option<WasiP1Ctx>,
}

impl Preview1 {
    fn library(&mut self) -> &mut WasiP1Ctx {
        // Only while an instance is made is there none: that code sees an empty context.
        self.library.get_or_insert_with(|| WasiCtxBuilder::new().build_p1())
    }
}

/// The functions that a command may import.
pub(super) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Tenant<Preview1>>> {
    let mut linker = Linker::new(engine);
    p1::add_to_linker_async(&mut linker, |tenant: &mut Tenant<Preview1>| tenant.wasi.library())?;
    linker.allow_shadowing(true);
    // The library refuses codes above 125, which programs use.
    linker.func_wrap(NAMESPACE, "proc_exit", |code: u32| -> wasmtime::Result<()> {
        Err(I32Exit(code.cast_signed()).into())
    })?;
    Ok(linker)
}

/// A command module.
pub(super) struct Command {
    pre: InstancePre<Tenant<Preview1>>,
}

impl Command {
    /// # Errors
    /// What the module lacks, as a sentence.
    pub(super) fn new(linker: &Linker<Tenant<Preview1>>, module: &Module) -> Result<Self, String> {
        check_imports(module)?;
        check_exports(module)?;
        let pre = linker.instantiate_pre(module).map_err(|error| format!("{error:#}"))?;
        Ok(Self { pre })
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
        instance.get_typed_func(store, "_start")
    }

    fn touched(wasi: &Preview1) -> bool {
        wasi.library.is_some()
    }

    fn enter(store: &mut Store<Tenant<Preview1>>, call: Call, input: Input) -> Result<(), Error> {
        let mut wasi = call.context()?;
        wasi.stdin(Stdin::new(input)).stdout(call.stdout.clone());
        let mut library = wasi.build_p1();
        library.ctx().table.set_max_capacity(RESOURCES);
        store.data_mut().wasi.library = Some(library);
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
