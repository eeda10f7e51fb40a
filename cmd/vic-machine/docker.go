package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"vic/containervm/vch"
)

// environmentOf is what docker needs in its environment for a VCH, as NAME=VALUE; nil if it is not known where the API is.
func environmentOf(v *vch.VCH, certPath string) []string {
	address := v.APIAddress()
	if address == "" {
		return nil
	}
	// The certificate is for its names.
	if host, port, err := net.SplitHostPort(address); err == nil {
		if names := v.Spec.ServerNames(); len(names) > 0 && !slices.Contains(names, host) {
			address = net.JoinHostPort(names[0], port)
		}
	}
	env := []string{"DOCKER_HOST=tcp://" + address}
	if v.Spec.TLS == vch.MutualTLS {
		dir := filepath.Join(certPath, "client")
		if abs, err := filepath.Abs(dir); err == nil {
			dir = abs
		}
		env = append(env, "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH="+dir)
	}
	return env
}

// dockerCommand is a command line by which docker reaches a VCH.
func dockerCommand(v *vch.VCH, env []string) string {
	command := "docker"
	if v.Spec.TLS == vch.ServerTLS {
		command += " --tls"
	}
	return strings.Join(quoteAll(env), " ") + " " + command + " info"
}

// quoteAll quotes words for a shell.
func quoteAll(words []string) []string {
	var out []string
	for _, w := range words {
		if w == "" || strings.ContainsFunc(w, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+./:,@%", r)
		}) {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		out = append(out, w)
	}
	return out
}

// A madeVCH is what create tells as JSON.
type madeVCH struct {
	Name    string   `json:"name"`
	ID      string   `json:"id"`
	Path    string   `json:"path"`
	Env     []string `json:"env"`
	EnvFile string   `json:"envFile"`
}

// tell writes the file of docker's environment and says how to use it.
func tell(cmd *cobra.Command, v *vch.VCH, certPath string) error {
	env := environmentOf(v, certPath)
	file := filepath.Join(certPath, v.Spec.Name+".env")
	if err := os.MkdirAll(certPath, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(strings.Join(env, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	if wantsJSON(cmd) {
		return printJSON(cmd, madeVCH{v.Spec.Name, v.VM, v.Path, env, file})
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "VCH %s is up: %s\n\nIts environment is in %s:\n%s\n\n%s\n", v.Spec.Name, v.Path, file, strings.Join(env, "\n"), dockerCommand(v, env))
	return err
}
