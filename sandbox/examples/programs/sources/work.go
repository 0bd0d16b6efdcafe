// Goroutines, channels, select, maps, garbage collection, time, sorting, hashing, files, panics.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type node struct {
	Name     string
	Children []*node
}

func grow(depth int) *node {
	if depth == 0 {
		return &node{Name: "leaf"}
	}
	return &node{fmt.Sprint("at ", depth), []*node{grow(depth - 1), grow(depth - 1)}}
}

func count(n *node) int {
	sum := 1
	for _, child := range n.Children {
		sum += count(child)
	}
	return sum
}

func main() {
	var wait sync.WaitGroup
	var sum int64
	results := make(chan [2]int, 8)
	for worker := 0; worker < 20; worker++ {
		wait.Add(1)
		go func(worker int) {
			defer wait.Done()
			local := 0
			for i := 0; i < 20000; i++ {
				local += i % (worker + 1)
			}
			atomic.AddInt64(&sum, int64(local))
			results <- [2]int{worker, local}
		}(worker)
	}
	go func() { wait.Wait(); close(results) }()
	byWorker := map[int]int{}
	for result := range results {
		byWorker[result[0]] = result[1]
	}
	keys := make([]int, 0)
	for key := range byWorker {
		keys = append(keys, key)
	}
	sort.Ints(keys)
	for _, key := range keys {
		fmt.Println(key, byWorker[key])
	}
	fmt.Println("sum", sum)

	for round := 0; round < 10; round++ {
		if n := count(grow(12)); n != 8191 {
			panic(n)
		}
	}
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	fmt.Println("collected", stats.NumGC > 0)

	started := time.Now()
	ticker := time.NewTicker(2 * time.Millisecond)
	ticks := 0
	timeout := time.After(50 * time.Millisecond)
loop:
	for {
		select {
		case <-ticker.C:
			if ticks++; ticks == 3 {
				break loop
			}
		case <-timeout:
			break loop
		}
	}
	ticker.Stop()
	fmt.Println("ticked", ticks > 0, time.Since(started) >= 2*time.Millisecond)

	spin := make(chan bool)
	go func() {
		for i := 0; ; i++ { // preempted by a signal
			select {
			case <-spin:
				return
			default:
			}
		}
	}()
	time.Sleep(15 * time.Millisecond)
	spin <- true

	encoded, _ := json.Marshal(grow(2))
	fmt.Printf("%s\n%x\n", encoded, sha256.Sum256(encoded))
	func() {
		defer func() { fmt.Println("recovered:", recover()) }()
		var nothing *node
		fmt.Println(nothing.Name)
	}()

	dir := os.Args[1]
	path := filepath.Join(dir, "out", "lines.txt")
	os.MkdirAll(filepath.Dir(path), 0o750)
	file, err := os.Create(path)
	if err != nil {
		panic(err)
	}
	writer := bufio.NewWriter(file)
	for i := 0; i < 1000; i++ {
		fmt.Fprintln(writer, strings.Repeat("x", i%17), i)
	}
	writer.Flush()
	file.Close()
	_, err = os.Open(filepath.Join(dir, "missing"))
	fmt.Println(errors.Is(err, os.ErrNotExist), err)
	os.Rename(path, filepath.Join(dir, "renamed"))
	filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if !info.IsDir() {
			fmt.Println(path, info.Size(), info.Mode())
		}
		return nil
	})
	fmt.Fprintln(os.Stderr, "done")
	os.Exit(3)
}
