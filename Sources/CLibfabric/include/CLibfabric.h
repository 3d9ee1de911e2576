#ifndef C_H
#define C_H
#endif
