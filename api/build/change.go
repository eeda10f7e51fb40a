package build

import (
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// maxChanges bounds what Change is given, in bytes.
const maxChanges = 64 << 10

// changeable are the instructions that docker commit and import take.
var changeable = []string{"CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"}

// Change changes a configuration as lines of a Dockerfile say. Variables in them are those of cfg, or else of env. The
// error is ErrInvalid.
func Change(cfg *dockerspec.DockerOCIImageConfig, env, lines []string) error {
	text := strings.Join(lines, "\n")
	if len(text) > maxChanges {
		return invalid("changes of %d bytes, %d are allowed", len(text), maxChanges)
	}
	if !slices.ContainsFunc(strings.Split(text, "\n"), isInstruction) {
		return nil
	}
	tree, err := parseFile([]byte(text))
	if err != nil {
		return err
	}
	lex := shell.NewLex(tree.EscapeToken)
	for _, n := range tree.AST.Children {
		if name := strings.ToUpper(n.Value); !slices.Contains(changeable, name) {
			return invalid("%s is not a valid change command", name)
		}
		c, err := instructions.ParseCommand(n)
		if err != nil {
			return invalidError{err}
		}
		vars := append(slices.Clone(cfg.Env), beside(env, cfg.Env)...)
		if ex, ok := c.(instructions.SupportsSingleWordExpansion); ok {
			if err := ex.Expand(expander(lex, vars)); err != nil {
				return invalidError{err}
			}
		}
		if _, err := (editor{cfg, lex, vars, func(string, ...any) {}}).edit(c); err != nil {
			return err
		}
	}
	return nil
}

// isInstruction tells a line from an empty one and a comment.
func isInstruction(line string) bool {
	line = strings.TrimSpace(line)
	return line != "" && line[0] != '#'
}
