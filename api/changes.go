package api

import (
	"cmp"
	"encoding/json"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/sys/signal"
)

// maxChanges bounds the changes of an import, in bytes.
const maxChanges = 64 << 10

// applyChanges changes an image's configuration as the lines of a Dockerfile say that docker import
// --change takes. Lines stand for themselves: none goes on in the next. Variables in them are those of cfg, or else of
// env.
func applyChanges(cfg *dockerspec.DockerOCIImageConfig, env, changes []string) error {
	text := strings.Join(changes, "\n")
	if len(text) > maxChanges {
		return badRequest("changes of %d bytes, %d are allowed", len(text), maxChanges)
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest := line, ""
		if i := strings.IndexAny(line, " \t"); i >= 0 {
			name, rest = line[:i], strings.TrimSpace(line[i:])
		}
		if err := applyChange(cfg, env, strings.ToUpper(name), rest); err != nil {
			return badRequest("change %q: %w", line, err)
		}
	}
	return nil
}

func applyChange(cfg *dockerspec.DockerOCIImageConfig, env []string, name, rest string) error {
	switch name {
	case "CMD", "ENTRYPOINT":
		list, isList := jsonList(rest)
		if !isList {
			list = []string{"/bin/sh", "-c", rest}
		}
		if rest == "" {
			return badRequest("%s needs a command", name)
		}
		if name == "CMD" {
			cfg.Cmd = list
		} else {
			cfg.Entrypoint = list
		}
		return nil
	case "ONBUILD":
		return onBuild(cfg, rest)
	case "HEALTHCHECK":
		h, err := healthcheck(rest)
		if err == nil {
			cfg.Healthcheck = h
		}
		return err
	case "ENV", "LABEL", "EXPOSE", "USER", "WORKDIR", "VOLUME", "STOPSIGNAL":
	default:
		return badRequest("%s is not a valid change command", name)
	}
	value := func(name string) string { return cmp.Or(envValue(cfg.Env, name), envValue(env, name)) }
	words, isList := jsonList(rest)
	if !isList || name != "VOLUME" {
		var err error
		if words, err = splitWords(rest, value); err != nil {
			return err
		}
	}
	if len(words) == 0 {
		return badRequest("%s needs an argument", name)
	}
	switch name {
	case "ENV", "LABEL":
		pairs, err := splitPairs(words, rest, value)
		if err != nil {
			return err
		}
		for _, p := range pairs {
			if name == "ENV" {
				cfg.Env = setEnv(cfg.Env, p[0], p[1])
				continue
			}
			if cfg.Labels == nil {
				cfg.Labels = make(map[string]string)
			}
			cfg.Labels[p[0]] = p[1]
		}
		return nil
	case "EXPOSE":
		return expose(cfg, words)
	case "VOLUME":
		if cfg.Volumes == nil {
			cfg.Volumes = make(map[string]struct{})
		}
		for _, w := range words {
			if w == "" {
				return badRequest("VOLUME specified can not be an empty string")
			}
			cfg.Volumes[w] = struct{}{}
		}
		return nil
	}
	if len(words) > 1 {
		return badRequest("%s takes one argument", name)
	}
	switch name {
	case "USER":
		cfg.User = words[0]
	case "WORKDIR":
		cfg.WorkingDir = path.Join("/", cfg.WorkingDir, words[0])
		if path.IsAbs(words[0]) {
			cfg.WorkingDir = path.Clean(words[0])
		}
	case "STOPSIGNAL":
		if _, err := signal.ParseSignal(words[0]); err != nil {
			return err
		}
		cfg.StopSignal = words[0]
	}
	return nil
}

// onBuild adds an instruction for builds upon the image.
func onBuild(cfg *dockerspec.DockerOCIImageConfig, rest string) error {
	word, _, _ := strings.Cut(rest, " ")
	switch strings.ToUpper(word) {
	case "":
		return badRequest("ONBUILD requires at least one argument")
	case "ONBUILD":
		return badRequest("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
	case "MAINTAINER", "FROM":
		return badRequest("%s isn't allowed as an ONBUILD trigger", strings.ToUpper(word))
	}
	cfg.OnBuild = append(cfg.OnBuild, rest)
	return nil
}

// healthcheck reads NONE, or options and CMD with a command.
func healthcheck(rest string) (*dockerspec.HealthcheckConfig, error) {
	h := new(dockerspec.HealthcheckConfig)
	for strings.HasPrefix(rest, "--") {
		option, after, _ := strings.Cut(rest, " ")
		rest = strings.TrimSpace(after)
		name, value, _ := strings.Cut(option, "=")
		if name == "--retries" {
			n, err := strconv.ParseInt(value, 10, 32)
			if err != nil || n < 0 {
				return nil, badRequest("--retries cannot be %q", value)
			}
			h.Retries = int(n)
			continue
		}
		at := map[string]*time.Duration{"--interval": &h.Interval, "--timeout": &h.Timeout, "--start-period": &h.StartPeriod, "--start-interval": &h.StartInterval}[name]
		if at == nil {
			return nil, badRequest("unknown flag: %s", name)
		}
		d, err := time.ParseDuration(value)
		if err != nil {
			return nil, badRequest("%s: %w", name, err)
		}
		if d != 0 && d < time.Millisecond {
			return nil, badRequest("interval %q cannot be less than 1ms", name)
		}
		*at = d
	}
	kind, rest, _ := strings.Cut(rest, " ")
	rest = strings.TrimSpace(rest)
	switch kind = strings.ToUpper(kind); {
	case kind == "NONE" && rest == "":
		h.Test = []string{"NONE"}
	case kind == "NONE":
		return nil, badRequest("HEALTHCHECK NONE takes no arguments")
	case kind != "CMD":
		return nil, badRequest("Unknown type %q in HEALTHCHECK (try CMD)", kind)
	case rest == "":
		return nil, badRequest("Missing command after HEALTHCHECK CMD")
	default:
		list, isList := jsonList(rest)
		if isList && len(list) > 0 {
			h.Test = append([]string{"CMD"}, list...)
		} else {
			h.Test = []string{"CMD-SHELL", rest}
		}
	}
	return h, nil
}

// jsonList reads a list of strings, as Dockerfiles have it in place of words.
func jsonList(s string) ([]string, bool) {
	if !strings.HasPrefix(s, "[") {
		return nil, false
	}
	list := []string{}
	err := json.Unmarshal([]byte(s), &list)
	return list, err == nil
}

// splitWords splits at spaces that are not quoted, takes quotes and backslashes away, and puts the values of variables
// in, which are not split.
func splitWords(s string, value func(string) string) ([]string, error) {
	var words []string
	var b strings.Builder
	in := false // a word
	for s != "" {
		if s[0] == ' ' || s[0] == '\t' {
			if in {
				words = append(words, b.String())
				b.Reset()
				in = false
			}
			s = s[1:]
			continue
		}
		text, isWord, rest, err := unquote(s, value)
		if err != nil {
			return nil, err
		}
		b.WriteString(text)
		in, s = in || isWord, rest
	}
	if in {
		words = append(words, b.String())
	}
	return words, nil
}

// unquote reads what s begins with: a quotation, a character behind a backslash, a variable, or one character. What
// is a word even if it is empty is said.
func unquote(s string, value func(string) string) (text string, isWord bool, rest string, err error) {
	switch c := s[0]; {
	case c == '\\' && len(s) > 1:
		return s[1:2], true, s[2:], nil
	case c == '$':
		text, rest, err = variable(s, value)
		return text, text != "", rest, err
	case c == '\'':
		text, rest, ok := strings.Cut(s[1:], "'")
		if !ok {
			return "", false, "", badRequest("a quotation does not end")
		}
		return text, true, rest, nil
	case c == '"':
		var b strings.Builder
		for s = s[1:]; s != ""; {
			switch {
			case s[0] == '"':
				return b.String(), true, s[1:], nil
			case s[0] == '\\' && len(s) > 1 && strings.ContainsRune(`"\$`, rune(s[1])):
				b.WriteByte(s[1])
				s = s[2:]
			case s[0] == '$':
				if text, s, err = variable(s, value); err != nil {
					return "", false, "", err
				}
				b.WriteString(text)
			default:
				b.WriteByte(s[0])
				s = s[1:]
			}
		}
		return "", false, "", badRequest("a quotation does not end")
	}
	return s[:1], true, s[1:], nil
}

var variableForm = regexp.MustCompile(`^\$(?:(\w+)|\{(\w+)(?:(:[-+])([^{}]*))?\})`)

// variable replaces $NAME, ${NAME}, ${NAME:-instead} or ${NAME:+if there is one}, which s begins with.
func variable(s string, value func(string) string) (text, rest string, err error) {
	m := variableForm.FindStringSubmatch(s)
	switch {
	case m == nil && strings.HasPrefix(s, "${"):
		return "", "", badRequest("variable %q: use ${NAME}, ${NAME:-WORD} or ${NAME:+WORD}", s)
	case m == nil:
		return s[:1], s[1:], nil
	}
	text = value(m[1] + m[2])
	switch {
	case m[3] == ":-":
		text = cmp.Or(text, m[4])
	case m[3] == ":+" && text != "":
		text = m[4]
	}
	return text, s[len(m[0]):], nil
}

// envValue is a variable's value in a list of NAME=VALUE.
func envValue(env []string, name string) string {
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

// splitPairs splits KEY=VALUE words, or the old form KEY VALUE, in which the value goes on to the end.
func splitPairs(words []string, rest string, value func(string) string) ([][2]string, error) {
	if !strings.Contains(words[0], "=") {
		if len(words) < 2 {
			return nil, badRequest("%s has no value", words[0])
		}
		_, old, _ := strings.Cut(strings.ReplaceAll(rest, "\t", " "), " ")
		var b strings.Builder
		for old = strings.TrimSpace(old); old != ""; {
			text, _, after, err := unquote(old, value)
			if err != nil {
				return nil, err
			}
			b.WriteString(text)
			old = after
		}
		return [][2]string{{words[0], b.String()}}, nil
	}
	var pairs [][2]string
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok || key == "" {
			return nil, badRequest("%q is not KEY=VALUE", w)
		}
		pairs = append(pairs, [2]string{key, value})
	}
	return pairs, nil
}

// setEnv sets a variable, in its place if it is there.
func setEnv(env []string, key, value string) []string {
	for i, e := range env {
		if strings.HasPrefix(e, key+"=") {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

// expose adds ports, PORT[-PORT][/PROTOCOL] each.
func expose(cfg *dockerspec.DockerOCIImageConfig, words []string) error {
	if cfg.ExposedPorts == nil {
		cfg.ExposedPorts = make(map[string]struct{})
	}
	for _, w := range words {
		span, protocol, ok := strings.Cut(w, "/")
		if !ok {
			protocol = "tcp"
		}
		protocol = strings.ToLower(protocol)
		from, to, isSpan := strings.Cut(span, "-")
		if !isSpan {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || first == 0 || last < first || protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
			return badRequest("invalid containerPort: %s", w)
		}
		for port := first; port <= last; port++ {
			cfg.ExposedPorts[strconv.FormatUint(port, 10)+"/"+protocol] = struct{}{}
		}
	}
	return nil
}
