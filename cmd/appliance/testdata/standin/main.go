// Standin is in vic's place in appliances that tests boot: it serves what it sees of its machine, and does what it is asked to.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "standin:", err)
		os.Exit(4)
	}
}

func run() error {
	at := slices.Index(os.Args, "--listen")
	if at < 0 || at+1 == len(os.Args) {
		return errors.New("no --listen HOST:PORT")
	}
	l, err := net.Listen("tcp", os.Args[at+1])
	if err != nil {
		return err
	}
	store := os.Args[slices.Index(os.Args, "--store")+1]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	http.HandleFunc("GET /seen", func(w http.ResponseWriter, _ *http.Request) { see(w) })
	http.HandleFunc("GET /file/{path...}", func(w http.ResponseWriter, r *http.Request) {
		p, err := os.ReadFile("/" + r.PathValue("path"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.Write(p)
	})
	http.HandleFunc("PUT /store/{name}", func(w http.ResponseWriter, r *http.Request) {
		p, err := io.ReadAll(r.Body)
		if err == nil {
			err = write(filepath.Join(store, r.PathValue("name")), p)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	http.HandleFunc("POST /exit", func(http.ResponseWriter, *http.Request) {
		fmt.Println("the last words")
		os.Exit(3)
	})
	if conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET")); err != nil {
		return err
	} else if _, err := conn.Write([]byte("READY=1")); err != nil {
		return err
	}
	fmt.Println("stand-in runs")
	go http.Serve(l, nil)
	<-ctx.Done()
	fmt.Println("stand-in ends cleanly")
	return nil
}

func write(path string, p []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	return errors.Join(err, f.Sync(), f.Close())
}

func see(w io.Writer) {
	interfaces := map[string][]string{}
	all, _ := net.Interfaces()
	for _, i := range all {
		interfaces[i.Name] = []string{}
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			interfaces[i.Name] = append(interfaces[i.Name], a.String())
		}
	}
	modes := map[string]string{}
	for _, root := range []string{"/etc/vic", "/etc/ssl/certs", "/bin", "/usr", "/var/lib/vic"} {
		filepath.Walk(root, func(path string, fi os.FileInfo, err error) error {
			if err == nil {
				modes[path] = fi.Mode().String()
			}
			return nil
		})
	}
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	name, _ := os.Hostname()
	dir, _ := os.Getwd()
	json.NewEncoder(w).Encode(map[string]any{
		"args": os.Args, "env": os.Environ(), "interfaces": interfaces, "modes": modes, "files": limit.Cur, "hostname": name, "dir": dir, "pid": os.Getpid(),
	})
}
