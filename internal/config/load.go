package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
)

// maxFileBytes bounds the configuration file: 1,000 certificates take about 200 kB.
const maxFileBytes = 16 << 20

// Load reads and checks the configuration file at path, with the overrides of the environment.
// Where anything is wrong, the error is of type Problems and holds every problem; the Config is nil then.
func Load(path string) (*Config, error) {
	data, file, problem := readFile(path)
	if problem != nil {
		return nil, Problems{*problem}
	}
	return parse(data, file, unsupportedKeys())
}

// readFile returns the content and the absolute name of the configuration file.
func readFile(path string) ([]byte, string, *Problem) {
	file, err := filepath.Abs(path)
	if err != nil {
		return nil, "", &Problem{Path: path, Message: err.Error()}
	}
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "", &Problem{
			Path: file, Message: "the configuration file does not exist",
			Hint: "name it with -c FILE, or make one with: sds-server init --dir DIR",
		}
	case err != nil:
		return nil, "", &Problem{Path: file, Message: "the configuration file cannot be read: " + reason(err)}
	case !info.Mode().IsRegular():
		return nil, "", &Problem{Path: file, Message: "the configuration file is not a regular file"}
	case info.Size() > maxFileBytes:
		return nil, "", &Problem{Path: file, Message: fmt.Sprintf("the configuration file has more than %d MiB", maxFileBytes>>20)}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, "", &Problem{Path: file, Message: "the configuration file cannot be read: " + reason(err)}
	}
	return data, file, nil
}

// parse is Load for the content of a file; relative names in it count from file's directory.
func parse(data []byte, file string, unsupported []unsupportedKey) (*Config, error) {
	settings, origin, problems := readTree(data, file)
	if settings == nil {
		return nil, problems
	}
	bound, envProblems := readEnv(origin)
	problems = append(problems, envProblems...)

	cfg, err := decode(settings, bound)
	if err != nil { // readTree and readEnv let nothing through that this could refuse, so say it, but as one problem
		return nil, append(problems, Problem{Path: file, Message: err.Error()}).arrange(origin)
	}
	cfg.origin = origin
	cfg.complete()
	refused := refusals(cfg, unsupported)
	problems = append(problems, cfg.validate(problems)...)
	problems = append(refused, dropBelow(problems, refused)...)
	if len(problems) > 0 {
		return nil, problems.arrange(origin)
	}
	cfg.finish()
	return cfg, nil
}

// decode lets viper put file, environment and defaults together.
func decode(settings map[string]any, bound []scalarKey) (*Config, error) {
	v := viper.New()
	for path, value := range defaults() {
		v.SetDefault(path, value)
	}
	for _, key := range bound {
		if err := v.BindEnv(key.path, key.env()); err != nil {
			return nil, fmt.Errorf("bind %s: %w", key.env(), err)
		}
	}
	if err := v.MergeConfigMap(settings); err != nil {
		return nil, fmt.Errorf("merge: %w", err)
	}
	var cfg Config
	err := v.UnmarshalExact(&cfg, viper.DecodeHook(textHook), func(c *mapstructure.DecoderConfig) { c.WeaklyTypedInput = false })
	if err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	return &cfg, nil
}

// textHook turns the text of an environment variable into the kind of the field.
func textHook(from, to reflect.Type, data any) (any, error) {
	if from.Kind() != reflect.String || to.Kind() == reflect.Pointer || to.Kind() == reflect.Interface {
		return data, nil
	}
	text, ok := data.(string)
	if !ok {
		return data, nil
	}
	return parseScalar(kindOf(to), text)
}

// defaults has the defaults of all keys outside of lists; those inside of lists are in complete.
func defaults() map[string]any {
	return map[string]any{
		"data_dir":                                  "/var/lib/sds-server",
		"seal.key_file":                             "/etc/sds-server/seal.key",
		"store.backend":                             backendBolt,
		"xds.limits.streams_per_peer":               20_000,
		"xds.limits.names_per_stream":               20_000,
		"xds.limits.new_streams_per_second":         2_000,
		"xds.limits.requests_per_stream_per_second": 20_000,
		"xds.limits.aliases_per_node":               1_000,
		"xds.limits.nodes_per_identity":             1_000,
		"admin.address":                             "unix:///run/sds-server/admin.sock",
		"http.address":                              "127.0.0.1:18001",
		"rollout.promotion":                         "auto",
		"rollout.watch":                             5 * time.Minute,
		"rollout.ack_timeout":                       time.Minute,
		"rollout.min_acked":                         100,
		"rollout.node_grace":                        10 * time.Minute,
		"rollout.empty_group":                       "wait",
		"rollout.retry_after":                       time.Hour,
		"rollout.undo_window":                       30 * time.Minute,
		"rollout.hook.timeout":                      time.Minute,
		"audit.retention":                           26280 * time.Hour,
	}
}

// reason returns the system's words for err without the path, which the problem names already.
func reason(err error) string {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err.Error()
	}
	return err.Error()
}
