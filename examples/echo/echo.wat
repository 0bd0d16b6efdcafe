;; The whole invocation contract in one page: standard input is the request, standard output the reply.
;; WASI preview 1, https://github.com/WebAssembly/WASI/blob/wasi-0.1/preview1/docs.md
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))

  ;; 0: iovec { address, length }   8: bytes read or written   16..65536: the buffer
  (memory (export "memory") 1)

  ;; Ends the program with the error's number as its exit code, unless it is 0.
  (func $check (param $errno i32)
    (if (local.get $errno) (then (call $proc_exit (local.get $errno)))))

  ;; One write may take fewer bytes than it was given.
  (func $write_all (param $at i32) (param $end i32)
    (loop $more
      (i32.store (i32.const 0) (local.get $at))
      (i32.store (i32.const 4) (i32.sub (local.get $end) (local.get $at)))
      (call $check (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set $at (i32.add (local.get $at) (i32.load (i32.const 8))))
      (br_if $more (i32.lt_u (local.get $at) (local.get $end)))))

  ;; Read a piece, write it, until a read gives no bytes.
  (func (export "_start") (local $got i32)
    (loop $next
      (i32.store (i32.const 0) (i32.const 16))
      (i32.store (i32.const 4) (i32.const 65520))
      (call $check (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set $got (i32.load (i32.const 8)))
      (if (local.get $got)
        (then
          (call $write_all (i32.const 16) (i32.add (i32.const 16) (local.get $got)))
          (br $next))))))
