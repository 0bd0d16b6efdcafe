//! WASI preview 2 components: state and imports that all of them share, and `wasi:cli` commands.

use wasmtime::component::{Component, InstancePre, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::p2::bindings::{Command as Bindings, CommandPre};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::call::Call;
use super::http::NoRequests;
use super::image::Kind;
use super::settings::RESOURCES;
use super::stdin::Stdin;
use super::tenant::Tenant;
use crate::engine::{ExitStatus, Input};
use crate::error::Error;

/// The WASI state of one store.
pub(super) struct Preview2 {
    ctx: Option<WasiCtx>,
    table: ResourceTable,
    http: WasiHttpCtx,
    hooks: NoRequests,
    touched: bool,
}

impl Default for Preview2 {
    fn default() -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES);
        Self { ctx: None, table, http: WasiHttpCtx::new(), hooks: NoRequests, touched: false }
    }
}

impl Preview2 {
    /// Whether code of the component has called the host.
    pub(super) fn touched(&self) -> bool {
        self.touched
    }

    pub(super) fn enter(&mut self, ctx: WasiCtx) {
        self.ctx = Some(ctx);
    }

    /// Drops every resource that the component still holds.
    pub(super) fn forget(&mut self) {
        self.table = ResourceTable::new();
    }
}

impl WasiView for Tenant<Preview2> {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let wasi = &mut self.wasi;
        wasi.touched = true;
        // Only while an instance is made is there none: that code sees an empty context.
        WasiCtxView { ctx: wasi.ctx.get_or_insert_with(WasiCtx::default), table: &mut wasi.table }
    }
}

impl WasiHttpView for Tenant<Preview2> {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let wasi = &mut self.wasi;
        wasi.touched = true;
        WasiHttpCtxView { ctx: &mut wasi.http, table: &mut wasi.table, hooks: &mut wasi.hooks }
    }
}

/// The interfaces that a component may import.
pub(super) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Tenant<Preview2>>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    Ok(linker)
}

/// Resolves a component's imports.
///
/// # Errors
/// What is missing, as a sentence.
pub(super) fn link(
    linker: &Linker<Tenant<Preview2>>,
    component: &Component,
) -> Result<InstancePre<Tenant<Preview2>>, String> {
    linker.instantiate_pre(component).map_err(|error| {
        format!("{error:#}; novum provides the interfaces of wasi:cli 0.2 and wasi:http 0.2 to components")
    })
}

/// A component that exports `wasi:cli/run`.
pub(super) struct Command(CommandPre<Tenant<Preview2>>);

impl Command {
    /// # Errors
    /// What the component lacks, as a sentence.
    pub(super) fn new(pre: InstancePre<Tenant<Preview2>>) -> Result<Self, String> {
        CommandPre::new(pre).map(Self).map_err(|error| format!("{error:#}"))
    }
}

impl Kind for Command {
    type Wasi = Preview2;
    type Instance = Bindings;
    type Task = ();

    fn engine(&self) -> &Engine {
        self.0.engine()
    }

    async fn instantiate(&self, store: &mut Store<Tenant<Preview2>>) -> wasmtime::Result<Bindings> {
        self.0.instantiate_async(store).await
    }

    fn touched(wasi: &Preview2) -> bool {
        wasi.touched()
    }

    fn enter(store: &mut Store<Tenant<Preview2>>, call: Call, input: Input) -> Result<(), Error> {
        let mut ctx = call.context()?;
        ctx.stdin(Stdin::new(input)).stdout(call.stdout.clone());
        store.data_mut().wasi.enter(ctx.build());
        Ok(())
    }

    async fn run(
        store: &mut Store<Tenant<Preview2>>,
        instance: Bindings,
        (): (),
    ) -> wasmtime::Result<ExitStatus> {
        let ended = instance.wasi_cli_run().call_run(store).await?;
        Ok(ExitStatus::Code(i32::from(ended.is_err())))
    }
}
