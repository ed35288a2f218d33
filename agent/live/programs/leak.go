// A program that allocates on Go's own heap.
package main

import (
	"syscall"
	"time"
)

var kept [][]byte

func main() {
	syscall.Write(1, []byte("READY\n"))
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		kept = append(kept, make([]byte, 100))
		time.Sleep(10 * time.Millisecond)
	}
}
