package config

import (
	"errors"
	"os"
	"strings"

	"github.com/spf13/viper"
)

// AdminSocket returns the path of the admin socket that the file at path names, or the default. It reads this one key and nothing else:
// a command may be run by someone who may not read the keys that the rest of the file names.
func AdminSocket(path string) (string, error) {
	data, file, problem := readFile(path)
	if problem != nil {
		return "", Problems{*problem}
	}
	v := viper.New()
	v.SetConfigType("yaml")
	v.SetDefault("admin.address", "unix:///run/sds-server/admin.sock")
	if err := v.BindEnv("admin.address", "SDS_SERVER_ADMIN_ADDRESS"); err != nil {
		return "", Problems{{Path: file, Message: err.Error()}}
	}
	if err := v.ReadConfig(strings.NewReader(string(data))); err != nil {
		if _, _, problems := readTree(data, file); len(problems) > 0 {
			return "", problems
		}
		return "", Problems{{Path: file, Message: err.Error()}}
	}
	socket, ok := strings.CutPrefix(v.GetString("admin.address"), "unix://")
	if !ok || socket == "" {
		return "", Problems{{Path: "admin.address", Message: "not unix:///PATH"}}
	}
	if _, err := os.Stat(socket); errors.Is(err, os.ErrPermission) {
		return "", Problems{{Path: "admin.address", Message: "no permission to reach " + socket, Hint: "run as root or as the server's user"}}
	}
	return socket, nil
}
