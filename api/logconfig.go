package api

import (
	"errors"
	"maps"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"vic/containervm"
)

// The log drivers. A container's log is the VM's own file with each of them: json-file and local differ in how much of
// it there is if nobody says, and none keeps it from docker logs.
const (
	jsonFile  = "json-file"
	localFile = "local"
	noLog     = "none"
)

var logDrivers = []string{jsonFile, localFile, noLog}

// foreignDrivers are Docker's others.
var foreignDrivers = []string{"awslogs", "etwlogs", "fluentd", "gcplogs", "gelf", "journald", "logentries", "splunk", "syslog"}

// errUnread is Docker's, of a container with the log driver none.
var errUnread = &statusError{http.StatusNotImplemented, errors.New("configured logging driver does not support reading")}

// unreadRoom is how much there is of a log that nobody reads later.
const unreadRoom = 1 << 20

func setLog(s *containervm.Spec, body *createBody) error {
	l := &body.HostConfig.LogConfig
	if l.Type == "" {
		l.Type = jsonFile
	}
	if !slices.Contains(logDrivers, l.Type) {
		return badRequest("logger: no log driver named '%s' is registered", l.Type)
	}
	if l.Config == nil {
		l.Config = map[string]string{}
	}
	for _, opt := range slices.Sorted(maps.Keys(l.Config)) {
		if l.Type == noLog || opt != "max-size" && opt != "max-file" && !slices.Contains(attributeOptions, opt) {
			return badRequest("unknown log opt '%s' for %s log driver", opt, l.Type)
		}
	}
	if _, err := logAttributes(l.Config, body.Labels, body.Env); err != nil {
		return err
	}
	if l.Type == noLog {
		s.Log = containervm.LogSpec{Room: unreadRoom, Unread: true}
		return nil
	}
	room, err := logRoom(l)
	s.Log.Room = room
	return err
}

// logRoom is max-size times max-file; 0 is no bound. Without a size, as in Docker, there is never a second file.
func logRoom(l *container.LogConfig) (int64, error) {
	size, files, parse := int64(0), int64(1), units.FromHumanSize
	if l.Type == localFile {
		size, files, parse = 20<<20, 5, units.RAMInBytes
	}
	if text, ok := l.Config["max-size"]; ok {
		var err error
		if size, err = parse(text); err != nil || size <= 0 {
			return 0, badRequest("invalid value for max-size: %q: it must be a size greater than 0", text)
		}
	}
	if text, ok := l.Config["max-file"]; ok {
		var err error
		if files, err = strconv.ParseInt(text, 10, 32); err != nil || files < 1 {
			return 0, badRequest("invalid value for max-file: %q: it must be a number of at least 1", text)
		}
	}
	if size > math.MaxInt64/files {
		return 0, badRequest("max-size times max-file is too large")
	}
	return size * files, nil
}

// attributeOptions are the options that say which labels and variables go with a log.
var attributeOptions = []string{"labels", "labels-regex", "env", "env-regex"}

// logAttributes are what docker logs --details shows before each line: the labels and variables that a container's log
// options name, NAME=VALUE with commas between them.
func logAttributes(opts map[string]string, labels map[string]string, env []string) (string, error) {
	attributes := map[string]string{}
	take := func(have map[string]string, list, pattern string) error {
		if names, ok := opts[list]; ok {
			for name := range strings.SplitSeq(names, ",") {
				if value, ok := have[name]; ok {
					attributes[name] = value
				}
			}
		}
		if text, ok := opts[pattern]; ok {
			re, err := regexp.Compile(text)
			if err != nil {
				return badRequest("invalid value for %s: %w", pattern, err)
			}
			for name, value := range have {
				if re.MatchString(name) {
					attributes[name] = value
				}
			}
		}
		return nil
	}
	variables := make(map[string]string, len(env))
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		variables[name] = value
	}
	if err := errors.Join(take(labels, "labels", "labels-regex"), take(variables, "env", "env-regex")); err != nil {
		return "", err
	}
	var shown []string
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		shown = append(shown, url.QueryEscape(name)+"="+url.QueryEscape(attributes[name]))
	}
	return strings.Join(shown, ","), nil
}
