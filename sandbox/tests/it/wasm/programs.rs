//! Programs in text, small enough to read.

/// Copies standard input to standard output in pieces of up to 64 KiB.
pub(super) const ECHO: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (loop $again
      (i32.store (i32.const 0) (i32.const 64))
      (i32.store (i32.const 4) (i32.const 65536))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (if (i32.load (i32.const 8)) (then
        (i32.store (i32.const 4) (i32.load (i32.const 8)))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br $again))))))"#;

/// A module with two pages of memory whose `_start` is `body`. It may use `$say fd ptr len`, `$exit code` and the
/// locals `$a`, `$b`; `imports` comes first.
pub(super) fn program(imports: &str, body: &str) -> String {
    format!(
        r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  {imports}
  (memory (export "memory") 2)
  (func $say (param $fd i32) (param $ptr i32) (param $len i32)
    (i32.store (i32.const 0) (local.get $ptr))
    (i32.store (i32.const 4) (local.get $len))
    (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start") (local $a i32) (local $b i32)
    {body}))"#
    )
}

/// Loops for ever.
pub(super) fn spin() -> String {
    program("", "(loop $again (br $again))")
}

/// Writes the 16 bytes at 64 to `fd` for ever.
pub(super) fn flood(fd: u32) -> String {
    program(
        "",
        &format!("(loop $again (call $say (i32.const {fd}) (i32.const 64) (i32.const 16)) (br $again))"),
    )
}

/// Calls a two-part list function of WASI (`args` or `environ`) and writes its strings, NUL bytes included.
pub(super) fn list(of: &str) -> String {
    let imports = format!(
        r#"(import "wasi_snapshot_preview1" "{of}_sizes_get" (func $sizes (param i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "{of}_get" (func $get (param i32 i32) (result i32)))"#
    );
    program(
        &imports,
        "(drop (call $sizes (i32.const 16) (i32.const 20)))
         (drop (call $get (i32.const 1024) (i32.const 4096)))
         (call $say (i32.const 1) (i32.load (i32.const 1024)) (i32.load (i32.const 20)))",
    )
}
